# Fetches from the hub what sshd of this machine needs, and puts it in place only if it is whole and meant for here.
#   refresh krl                  what is revoked; sshd reads it at each login
#   refresh certificate [FILE]   the host certificate, from the hub or FILE; then reloads sshd
#   refresh check                changes nothing: is the certificate in place the right one, and of today?
#   refresh reload               has sshd read its configuration
set -eu
umask 077
PATH=$PATH:/usr/sbin:/sbin
new=$ETC/.$1.$$
trap 'rm -f "$new"' EXIT
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

certificate() {
    if [ -n "$1" ]; then cat "$1" >"$new"; else ask knot-host-certificate; fi
    fits "$new" || stop 'that certificate is not for this machine and space; the old one stays'
    install "$ETC/host-cert.pub"
    [ ! -e "$ETC/krl" ] || reload
}

# Whether a certificate is for our host key, of the CA that we know, and names this space
fits() {
    shown=$(ssh-keygen -L -f "$1" 2>/dev/null) || return 1
    for line in ' host certificate' "ED25519-CERT $(fingerprint "$HOST_KEY")" "Signing CA: ED25519 $(fingerprint "$ETC/host_ca.pub")" " $SPACE"; do
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
    krl) krl ;;
    certificate) certificate "${2-}" ;;
    check) check ;;
    reload) reload ;;
    *) stop 'refresh krl|certificate|check|reload' ;;
esac
