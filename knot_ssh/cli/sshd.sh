#!/bin/sh
# Has this machine take part as the space @FULL_NAME@, with its own sshd and ssh and nothing else.
#
# Read it, then run it there as root within 30 minutes: the join token in it works once. It may be run again, and changes
# only what is due. docs/sshd.md says what each file is for, and how to take all of it out again.
#
# Everything is in functions, and the last line calls them: of a copy that was cut off nothing is run.
# Needs OpenSSH 8.4 or later.
set -eu
umask 077
PATH=$PATH:/usr/sbin:/sbin

SPACE='@SPACE_ID@'
PRINCIPAL='@PRINCIPAL@'       # who may come in: certificates of this owner for this zone
HUB_HOST='@HUB_HOST@'
HUB_PORT='@HUB_PORT@'
USER_CA='@USER_CA@'
HOST_CA='@HOST_CA@'
TOKEN='@TOKEN@'

ETC=/etc/ssh/knot
CONFIG=/etc/ssh/sshd_config
DROP_IN=/etc/ssh/sshd_config.d/00-knot.conf # sshd goes by the first that it reads
BEFORE=$ETC/before # what DROP_IN was; there as long as sshd has not been told of the new one
UNITS=/etc/systemd/system
changed=''

main() {
    check_machine
    make_account
    be_alone
    trap tidy EXIT
    trap 'exit 1' HUP INT PIPE TERM # not every sh takes these for an EXIT
    rm -rf "$ETC"/.join.*           # of a run that was killed
    write_files
    configure_sshd
    is_joined || join
    tell_sshd
    keep_running
}

# Two runs would tidy up each other's files. What is locked is the folder, as long as this process or one it started lives
be_alone() {
    mkdir -p "$ETC"
    chmod 0755 "$ETC" # sshd reads principals as knot
    command -v flock >/dev/null || return 0
    exec 9<"$ETC"
    flock -n 9 || stop 'another run of this script is under way; this one has changed nothing'
}

# However the script ends: no token is left lying about, and sshd's files are as they were unless it was told of them
tidy() {
    rm -rf "$ETC"/.join.*
    [ ! -e "$BEFORE" ] || put_back
}

say() { printf 'knot: %s\n' "$*" >&2; }

stop() {
    say "$*"
    exit 1
}

# put FILE MODE: what comes on stdin becomes that file, in one step, unless it is that already
put() {
    cat >"$1.new"
    chmod "$2" "$1.new"
    if cmp -s "$1.new" "$1"; then
        rm "$1.new"
    else
        mv "$1.new" "$1"
        changed=yes
    fi
}

# --- Before anything is changed ---------------------------------------------------------------------------------------

check_machine() {
    [ "$(id -u)" = 0 ] || stop 'run this as root'
    for program in sshd ssh ssh-keygen; do
        command -v "$program" >/dev/null || stop "$program is not installed"
    done
    case $(ssh -V 2>&1) in OpenSSH_[0-7].* | OpenSSH_8.[0-3]*) stop 'this takes OpenSSH 8.4 or later; nothing was changed' ;; esac
    sshd -t || stop "sshd does not take its configuration as it is ($CONFIG): mend it first; nothing was changed"
    includes || stop "$CONFIG does not include /etc/ssh/sshd_config.d/*.conf: put that Include first in it; nothing was changed"
    HOST_KEY=$(host_key) || stop 'sshd has no ed25519 host key: make one with ssh-keygen -A; nothing was changed'
    ! other=$(other_certificate) || stop "sshd shows $other for its ed25519 host key, and can show but one; nothing was changed"
    LISTENS=$(listens)
    [ -n "$LISTENS" ] || stop 'sshd does not say where it listens (sshd -T); nothing was changed'
    if [ -e "$ETC/ssh_config" ] && ! grep -q "User $SPACE\$" "$ETC/ssh_config"; then
        stop "this machine is another space already: remove $ETC first; nothing was changed"
    fi
}

# The Include must stand before the first Match: behind one it would belong to that
includes() {
    awk 'tolower($1) == "match" { exit }
         tolower($1) == "include" && $0 ~ /sshd_config\.d\/\*\.conf/ { found = 1; exit }
         END { exit !found }' "$CONFIG"
}

host_key() {
    for key in $(sshd -T | sed -n 's/^hostkey //p'); do
        case $(ssh-keygen -l -f "$key" 2>/dev/null) in *'(ED25519)')
            printf '%s\n' "$key"
            return
            ;;
        esac
    done
    return 1
}

# A host certificate, not ours, for the same key: of several sshd shows the last alone
other_certificate() {
    ours=$(ssh-keygen -l -f "$HOST_KEY" | cut -d' ' -f2)
    for file in $(sshd -T | sed -n 's/^hostcertificate //p'); do
        [ "$file" != "$ETC/host-cert.pub" ] || continue
        case $(ssh-keygen -l -f "$file" 2>/dev/null) in *" $ours "*)
            printf '%s\n' "$file"
            return
            ;;
        esac
    done
    return 1
}

# Where the hub's connections are led: sshd on this machine, wherever it listens
listens() {
    sshd -T | sed -n 's/^listenaddress //p' | sed 's/^0\.0\.0\.0:/127.0.0.1:/; s/^\[::\]:/[::1]:/' | sort | head -n 1
}

# --- The account that certificates of $PRINCIPAL log in to: no password, shell or home ---------------------------------

make_account() {
    if [ -z "$(getent passwd knot)" ]; then
        command -v useradd >/dev/null || stop 'there is no useradd: make an account knot, home /nonexistent, shell /bin/false, and run this again'
        useradd --system --no-create-home --home-dir /nonexistent --shell "$(no_shell)" --password '*' knot
    fi
    case $(getent passwd knot | cut -d: -f6,7) in
        /nonexistent:*/nologin | /nonexistent:*/false) ;;
        *) stop 'there is an account knot already, of something else (it has a home or a shell): rename that first' ;;
    esac
    # "!" would be an account that is locked, for an sshd without PAM; "*" is no password either
    case $(getent shadow knot | cut -d: -f2) in '!'*) usermod --password '*' knot ;; esac
}

no_shell() {
    for shell in /usr/sbin/nologin /sbin/nologin /bin/false; do
        [ ! -x "$shell" ] || break
    done
    printf '%s\n' "$shell"
}

# --- $ETC: what sshd and ssh are told ---------------------------------------------------------------------------------

write_files() {
    mkdir -p "${DROP_IN%/*}"
    # the key by which the hub knows this machine; it stays here
    [ -e "$ETC/key" ] || ssh-keygen -q -t ed25519 -N '' -C "knot registration" -f "$ETC/key" </dev/null
    printf '%s\n' "$USER_CA" | put "$ETC/user_ca.pub" 0644
    printf '%s\n' "$HOST_CA" | put "$ETC/host_ca.pub" 0644
    printf '%s\n' "$PRINCIPAL" | put "$ETC/principals" 0644
    # the hub is whoever the CA says is hub.knot, at whatever address
    printf '%s\n' "$HOST_CA" | sed 's/^/@cert-authority hub.knot /' | put "$ETC/known_hosts" 0644
    changed=''
    put "$ETC/ssh_config" 0644 <<END
# What ssh of this machine needs to speak to the hub. "registration" also has it lead others here.
Host registration
    RemoteForward $SPACE:22 $LISTENS
    ExitOnForwardFailure yes
Host hub registration
    HostName $HUB_HOST
    Port $HUB_PORT
    User $SPACE
    HostKeyAlias hub.knot
    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com
    UserKnownHostsFile $ETC/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    CheckHostIP no
    UpdateHostKeys no
    IdentityFile $ETC/key
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    BatchMode yes
    RequestTTY no
    ControlPath none
    ConnectTimeout 10
    ServerAliveInterval 4
    ServerAliveCountMax 3
END
    restart=$changed
    write_refresh | put "$ETC/refresh" 0700
}

write_refresh() {
    cat <<END
#!/bin/sh
SPACE='$SPACE'
HOST_KEY='$HOST_KEY'
ETC='$ETC'
END
    cat <<'END'
@REFRESH@
END
}

# --- Joining: once, with the token as password ------------------------------------------------------------------------

# Whether the hub knows this machine's keys: it gives a certificate that fits, where the one in place is not of today
is_joined() {
    [ -e "$ETC/host-cert.pub" ] || return 1
    "$ETC/refresh" check || "$ETC/refresh" certificate 2>/dev/null || return 1
    "$ETC/refresh" krl
}

join() {
    folder=$(mktemp -d "$ETC/.join.XXXXXX")
    # the token goes by a file that root alone can read: not by an argument or a variable, which others could
    printf '%s\n' "$TOKEN" >"$folder/token"
    printf '#!/bin/sh\nexec cat "%s/token"\n' "$folder" >"$folder/askpass"
    chmod 0700 "$folder/askpass"
    {
        ssh-keygen -y -f "$ETC/key"
        ssh-keygen -y -f "$HOST_KEY"
        prove knot-registration "$ETC/key"
        prove knot-host "$HOST_KEY"
    } >"$folder/request"
    SSH_ASKPASS=$folder/askpass SSH_ASKPASS_REQUIRE=force DISPLAY=${DISPLAY:-:0} \
        ssh -F "$ETC/ssh_config" -o User=join -o PubkeyAuthentication=no -o PreferredAuthentications=password \
        -o BatchMode=no -o NumberOfPasswordPrompts=1 -s hub knot-join-sshd \
        <"$folder/request" >"$folder/certificate" || stop 'the hub did not take this machine in; sshd is as it was'
    "$ETC/refresh" certificate "$folder/certificate"
    "$ETC/refresh" krl # before sshd is told: one that cannot read its RevokedKeys lets nobody in
}

# prove NAMESPACE KEY: a signature over the space's id, so that the hub enrols no key that this machine does not hold
prove() { printf '%s' "$SPACE" | ssh-keygen -q -Y sign -n "$1" -f "$2" 2>/dev/null; }

# --- sshd -------------------------------------------------------------------------------------------------------------

configure_sshd() {
    keep_before
    put "$DROP_IN" 0644 <<END
# Lets $PRINCIPAL forward ports to this machine's loopback, and do nothing else.
# How this machine shows that it is the space $SPACE:
HostCertificate $ETC/host-cert.pub
# For this account alone: our CA opens no other.
Match User knot
    TrustedUserCAKeys $ETC/user_ca.pub
    AuthorizedPrincipalsFile $ETC/principals
    AuthorizedPrincipalsCommand none
    RevokedKeys $ETC/krl
    AuthorizedKeysFile none
    AuthorizedKeysCommand none
    AuthenticationMethods publickey
    PubkeyAuthentication yes
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    HostbasedAuthentication no
    DisableForwarding no
    AllowTcpForwarding local
    PermitOpen 127.0.0.1:* [::1]:* localhost:*
    PermitListen none
    GatewayPorts no
    AllowStreamLocalForwarding no
    AllowAgentForwarding no
    X11Forwarding no
    PermitTunnel no
    PermitTTY no
    PermitUserRC no
    MaxSessions 0
    ForceCommand /bin/false
Match all
END
    if cmp -s "$DROP_IN" "$BEFORE"; then
        rm "$BEFORE"
    else
        { is_taken && is_in_force; } || stop "sshd would not do what $DROP_IN says; it is as it was, and this machine has not joined"
    fi
}

# An empty file for none. One that is there is of a run that was killed: what that has put in place was not there before
keep_before() {
    [ ! -e "$BEFORE" ] || return 0
    if [ -e "$DROP_IN" ]; then cat "$DROP_IN"; fi | put "$BEFORE" 0644
}

# sshd goes on about the host certificate that is not there yet, and takes the configuration all the same
is_taken() {
    said=$(sshd -t 2>&1) && return
    say "$said"
    return 1
}

tell_sshd() {
    [ ! -e "$BEFORE" ] || "$ETC/refresh" reload || stop 'sshd would not read its configuration anew; it was put back as it was'
    rm -f "$BEFORE"
    ! sshd_says knot | grep -E '^(allow|deny)(users|groups) ' >&2 || say 'see that these lines of sshd let the account knot in'
}

put_back() {
    if [ -s "$BEFORE" ]; then mv "$BEFORE" "$DROP_IN"; else rm -f "$DROP_IN" "$BEFORE"; fi
    "$ETC/refresh" reload || true
}

sshd_says() { sshd -T -C "user=$1,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22" 2>/dev/null; }

# Whether every line holds for knot, though other files may say otherwise, and our CA is unknown to any other account
is_in_force() {
    sshd_says knot >"$ETC/says"
    sshd_says root >"$ETC/says.root"
    in_force=yes
    if grep -qF "$ETC/user_ca.pub" "$ETC/says.root"; then in_force=''; fi
    sed -n '/^[^#]/ { /^Match/d; s/^ *//; p; }' "$DROP_IN" >"$ETC/wanted"
    while read -r line; do
        grep -qixF -e "$line" "$ETC/says" || {
            say "another file of sshd's overrules: $line"
            in_force=''
        }
    done <"$ETC/wanted"
    rm "$ETC/says" "$ETC/says.root" "$ETC/wanted"
    [ -n "$in_force" ]
}

# --- What has to go on ------------------------------------------------------------------------------------------------

keep_running() {
    if [ -d /run/systemd/system ]; then
        write_units
        systemctl daemon-reload
        systemctl enable --quiet --now knot-sshd.service knot-sshd-krl.timer knot-sshd-certificate.timer
        [ -z "$changed$restart" ] || systemctl restart knot-sshd.service
        return
    fi
    cat <<END
There is no systemd here. Have these run as root: the first always, again whenever it ends, the others by cron.
ssh -F $ETC/ssh_config -N registration
*/5 * * * * $ETC/refresh krl
17 4 * * * $ETC/refresh certificate
END
}

write_units() {
    changed=''
    put "$UNITS/knot-sshd.service" 0644 <<END
[Unit]
Description=Has the knot hub lead others to this machine's sshd
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=$(command -v ssh) -F $ETC/ssh_config -N registration
Restart=always
RestartSec=1
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
END
    put "$UNITS/knot-sshd-refresh@.service" 0644 <<END
[Unit]
Description=Fetches the %i for this machine's sshd from the knot hub
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=$ETC/refresh %i
END
    timer krl '*:0/5' 30 | put "$UNITS/knot-sshd-krl.timer" 0644
    timer certificate daily 3600 | put "$UNITS/knot-sshd-certificate.timer" 0644
}

# timer WHAT WHEN SPREAD: not at the very moment at which all other machines ask, but within so many seconds of it
timer() {
    cat <<END
[Unit]
Description=Fetches the $1 for this machine's sshd from the knot hub

[Timer]
OnCalendar=$2
RandomizedDelaySec=$3
Persistent=yes
Unit=knot-sshd-refresh@$1.service

[Install]
WantedBy=timers.target
END
}

main
