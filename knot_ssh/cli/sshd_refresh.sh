# Fetches from the hub what sshd of this machine needs, and puts it in place only if it is whole and meant for here.
#   refresh krl                  what is revoked, and the CAs to trust; sshd reads both at each login
#   refresh certificate [FILE]   the host certificate, from the hub or FILE; then reloads sshd
#   refresh check                changes nothing: is the certificate in place the right one, and of today?
#   refresh reload               has sshd read its configuration
set -eu
umask 077
PATH=$PATH:/usr/sbin:/sbin
new=$ETC/.$1.$$
trap 'rm -f "$new" "$new.part"' EXIT
trap 'exit 1' HUP INT PIPE TERM

stop() {
    printf 'knot: %s\n' "$*" >&2
    exit 1
}

ask() { ssh -F "$ETC/ssh_config" -s hub "$1" </dev/null >"$new" || stop "the hub gave no answer to $1; what is there stays"; }

install() {
    chmod 0644 "$new"
    mv "$new" "$1"
}

# An empty file would do for sshd as a list of nothing; ssh-keygen takes none but a whole KRL
krl() {
    ask knot-krl
    ssh-keygen -Q -f "$new" "$ETC/user_ca.pub" >/dev/null || stop 'that is no key revocation list; the old one stays'
    install "$ETC/krl"
}

# Which CAs to trust. While one is changed for another there are two; the host certificate is to be by the first
trust() {
    ask knot-trust
    ! grep -qvxE '(user|host) ssh-ed25519 [A-Za-z0-9+/]{68}' "$new" || stop 'these are no CAs; the old ones stay'
    for kind in user host; do grep -q "^$kind " "$new" || stop "the hub names no $kind CA; the old ones stay"; done
    sed -n 's/^user //p' "$new" | keep "$ETC/user_ca.pub"
    sed -n 's/^host //p' "$new" | keep "$ETC/host_ca.pub"
    sed -n 's/^host /@cert-authority hub.knot /p' "$new" | keep "$ETC/known_hosts"
    ! [ -e "$ETC/host-cert.pub" ] || is_by "$ETC/host-cert.pub" "$(fingerprint "$ETC/host_ca.pub" | head -n 1)" || certificate ''
}

# keep FILE: what comes on stdin becomes that file, in one step, unless it is that already
keep() {
    cat >"$new.part"
    cmp -s "$new.part" "$1" || { chmod 0644 "$new.part" && mv "$new.part" "$1"; }
}

# is_by CERTIFICATE CA...: whether one of these has signed it
is_by() {
    signed=$(ssh-keygen -L -f "$1" 2>/dev/null) || return 1
    shift
    for ca in "$@"; do
        case $signed in *"Signing CA: ED25519 $ca"*) return 0 ;; esac
    done
    return 1
}

certificate() {
    if [ -n "$1" ]; then cat "$1" >"$new"; else ask knot-host-certificate; fi
    fits "$new" || stop 'that certificate is not for this machine and space; the old one stays'
    install "$ETC/host-cert.pub"
    [ ! -e "$ETC/krl" ] || reload
}

# Whether a certificate is for our host key, of a CA that we know, and names this space
fits() {
    # shellcheck disable=SC2046 # a word for each CA
    is_by "$1" $(fingerprint "$ETC/host_ca.pub") || return 1
    shown=$(ssh-keygen -L -f "$1" 2>/dev/null) || return 1
    for line in ' host certificate' "ED25519-CERT $(fingerprint "$HOST_KEY")" " $SPACE"; do
        printf '%s\n' "$shown" | grep -qF -e "$line" || return 1
    done
}

fingerprint() { ssh-keygen -l -f "$1" | cut -d' ' -f2; }

check() { fits "$ETC/host-cert.pub" && [ -n "$(find "$ETC/host-cert.pub" -mtime -1)" ]; }

reload() {
    sshd -t
    for unit in ssh sshd; do
        if systemctl is-active --quiet "$unit" 2>/dev/null; then
            systemctl reload "$unit"
            return
        fi
    done
    ! systemctl is-active --quiet ssh.socket sshd.socket 2>/dev/null || return 0 # one is started for who comes next
    pid=$(cat "$(sshd -T | sed -n 's/^pidfile //p')" 2>/dev/null) || pid=none
    case $(cat "/proc/$pid/comm" 2>/dev/null) in
        sshd*) kill -HUP "$pid" ;; # and not whatever else may have that number by now
        *) printf 'knot: sshd does not run, or not from its pid file: start it, or have it read its configuration\n' >&2 ;;
    esac
}

case $1 in
    krl)
        krl
        trust
        ;;
    certificate) certificate "${2-}" ;;
    check) check ;;
    reload) reload ;;
    *) stop 'refresh krl|certificate|check|reload' ;;
esac
