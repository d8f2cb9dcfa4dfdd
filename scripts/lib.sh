# Shared by the commands in this directory, which source it; nothing runs here
# by itself. It finds what a machine lacks and installs it, or names it.
#
# A tool counts as there when it can be used, not when a package manager knows
# it: hand-installed compilers and other distributions are as good as Debian's.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
pgjdbc_jar=/usr/share/java/postgresql.jar
started=$SECONDS
step_name=

# step NAME: begins a step. `fail_step`, on a trap, says which one failed.
step() {
    step_name=$1
    printf '\n==> [%3ds] %s\n' "$((SECONDS - started))" "$step_name"
}

# shellcheck disable=SC2329 # called by the ERR trap of those who source this
fail_step() {
    printf '\n==> FAILED: %s\n' "$step_name" >&2
}

say() { printf '    %s\n' "$*"; }

# Rust is the one thing not taken from Debian: its rustc is older than the
# edition this project is written in.
need_rust() {
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    if ! command -v cargo >/dev/null; then
        echo "missing: cargo. Install Rust 1.88 or newer from https://rustup.rs and run this again." >&2
        return 1
    fi
}

# need_rust_component COMPONENT COMMAND: rustfmt and clippy are not in rustup's
# minimal profile.
need_rust_component() {
    "$2" --version >/dev/null 2>&1 && return
    if command -v rustup >/dev/null && rustup component add "$1" </dev/null; then
        return
    fi
    echo "missing: $2. Install the $1 component of your Rust toolchain and run this again." >&2
    return 1
}

# Prints the directory with PostgreSQL's server programs; fails if there is none.
# Debian keeps them out of PATH, one directory a version.
postgres_bin() {
    local dir
    for dir in /usr/lib/postgresql/15/bin /usr/lib/postgresql/*/bin; do
        if [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then
            echo "$dir"
            return
        fi
    done
    dir=$(command -v postgres) && dirname -- "$dir"
}

# Prints the Debian package of everything in "$@" that is not there.
# Known things: bzip2 cc chromium dpkg-dev haproxy jdk libssl man node npm openssl pgbouncer
# pgjdbc pkg-config postgresql python3 systemd venv.
missing_packages() {
    local thing
    for thing in "$@"; do
        case $thing in
        cc)
            # libc's headers come apart from the compiler: try both at once.
            echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || echo gcc libc6-dev
            ;;
        pkg-config) command -v pkg-config >/dev/null || echo pkg-config ;;
        libssl) pkg-config --exists openssl 2>/dev/null || echo libssl-dev ;;
        openssl) command -v openssl >/dev/null || echo openssl ;;
        postgresql)
            if ! postgres_bin >/dev/null || ! command -v psql >/dev/null; then
                if apt-cache show postgresql-15 >/dev/null 2>&1; then
                    echo postgresql-15
                else
                    echo postgresql
                fi
            fi
            ;;
        chromium) command -v chromium >/dev/null || echo chromium ;;
        python3) command -v python3 >/dev/null || echo python3 ;;
        haproxy | pgbouncer)
            # Daemons, which are not in everybody's path.
            PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$thing" >/dev/null || echo "$thing"
            ;;
        bzip2) command -v bzip2 >/dev/null || echo bzip2 ;;
        dpkg-dev) command -v dpkg-shlibdeps >/dev/null || echo dpkg-dev ;;
        man) command -v man >/dev/null || echo man-db ;;
        systemd) [ -x /lib/systemd/systemd ] || echo systemd ;;
        venv) python3 -c 'import ensurepip' 2>/dev/null || echo python3 python3-venv ;;
        # pg asks for 16; Debian has a newer one.
        node) node -e 'process.exit(Number(parseInt(process.version.slice(1)) < 16))' 2>/dev/null || echo nodejs ;;
        npm) npm --version >/dev/null 2>&1 || echo npm ;;
        # A Java that compiles what it runs, not a runtime alone.
        jdk) java --list-modules 2>/dev/null | grep '^jdk\.compiler' >/dev/null || echo default-jdk-headless ;;
        pgjdbc) [ -e "$pgjdbc_jar" ] || echo libpostgresql-jdbc-java ;;
        *)
            echo "missing_packages: unknown thing: $thing" >&2
            return 1
            ;;
        esac
    done
}

# need_packages THING...: installs what is missing where that is possible
# without a question, else names it in one line and fails.
need_packages() {
    local packages as_root=()
    packages=$(missing_packages "$@" | paste -sd ' ')
    [ -n "$packages" ] || return 0

    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo -n)
    fi
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        echo "missing, as Debian names it: $packages. Install that and run this again." >&2
        return 1
    fi

    say "installing: $packages"
    # Stale lists are worth a try: the machine may have no network but a cache.
    "${as_root[@]}" apt-get update -qq </dev/null || say "apt-get update failed; going on with the lists there are"
    # What the lists did not know before they may know now.
    packages=$(missing_packages "$@" | paste -sd ' ')

    local cluster_conf=/etc/postgresql-common/createcluster.conf had_conf=
    case $packages in
    *postgresql*)
        # Debian's package makes a database cluster and starts it. The tests make
        # their own and nobody asked for a service: none, then. The setting is
        # taken back below, so that it decides nothing about later packages.
        had_conf=$(mktemp)
        "${as_root[@]}" mkdir -p "$(dirname -- "$cluster_conf")"
        if [ -e "$cluster_conf" ]; then
            cat "$cluster_conf" >"$had_conf"
        fi
        echo 'create_main_cluster = false' | "${as_root[@]}" tee -a "$cluster_conf" >/dev/null
        ;;
    esac
    # Other daemons' packages start them as a service, unless this says no.
    local policy=/usr/sbin/policy-rc.d had_policy=yes
    if [ ! -e "$policy" ]; then
        had_policy=
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi

    local status=0 log
    log=$(mktemp)
    # shellcheck disable=SC2086 # one word a package
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold \
        $packages </dev/null >"$log" 2>&1 || status=$?

    if [ -z "$had_policy" ]; then
        "${as_root[@]}" rm -f "$policy"
    fi
    if [ -n "$had_conf" ]; then
        if [ -s "$had_conf" ]; then
            "${as_root[@]}" tee "$cluster_conf" <"$had_conf" >/dev/null
        else
            "${as_root[@]}" rm -f "$cluster_conf"
        fi
        rm -f "$had_conf"
    fi
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$log" >&2
        echo "apt-get could not install: $packages" >&2
    fi
    rm -f "$log"
    return "$status"
}

# Puts a python3 that has psycopg first in PATH: the machine's, or one of our own
# below the target directory.
need_psycopg() {
    if python3 -c 'import psycopg' 2>/dev/null; then
        return
    fi
    local venv
    venv=$(target_directory)/venv
    if ! "$venv/bin/python3" -c 'import psycopg' 2>/dev/null; then
        need_packages venv
        say "installing: psycopg, into $venv"
        python3 -m venv "$venv"
        "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check 'psycopg[binary]' </dev/null
    fi
    PATH=$venv/bin:$PATH
}

# Puts a python3 first in PATH that has the drivers of tests/drivers, one of our own below
# the target directory: their versions are those that were looked at.
need_python_drivers() {
    local venv stamp
    venv=$(target_directory)/drivers
    stamp=$venv/installed
    if ! cmp -s tests/drivers/requirements.txt "$stamp"; then
        need_packages venv
        say "installing: $(paste -sd ' ' tests/drivers/requirements.txt), into $venv"
        python3 -m venv "$venv"
        "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check \
            -r tests/drivers/requirements.txt </dev/null
        cp tests/drivers/requirements.txt "$stamp"
    fi
    PATH=$venv/bin:$PATH
}

# Puts promtool and prometheus first in PATH: the machine's, or those of Debian's package,
# unpacked below the target directory. Installed, the package would start a server on all
# addresses, at every boot, that nobody asked for.
need_prometheus() {
    if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
        return
    fi
    local directory scratch
    directory=$(target_directory)/prometheus
    if ! "$directory/usr/bin/promtool" --version >/dev/null 2>&1; then
        if ! command -v apt-get >/dev/null; then
            echo "missing, as Debian names it: prometheus. Install that and run this again." >&2
            return 1
        fi
        say "installing: prometheus, into $directory"
        scratch=$(mktemp -d)
        if ! download_package prometheus "$scratch"; then
            rm -rf "$scratch"
            return 1
        fi
        rm -rf "$directory"
        dpkg-deb --extract "$scratch"/prometheus_*.deb "$directory"
        rm -rf "$scratch"
    fi
    PATH=$directory/usr/bin:$PATH
}

# download_package PACKAGE DIRECTORY: fetches Debian's package without installing it, with
# fresh lists where those there are do not lead to it.
download_package() (
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
    # Root's directory is closed to the user that apt would fetch as.
    fetch() { apt-get download -qq -o APT::Sandbox::User=root "$1" </dev/null; }
    cd -- "$2" || return
    if fetch "$1" >fetch.log 2>&1; then
        return
    fi
    "${as_root[@]}" apt-get update -qq </dev/null || say "apt-get update failed; going on with the lists there are"
    if ! fetch "$1" >fetch.log 2>&1; then
        cat fetch.log >&2
        echo "missing, as Debian names it: $1. Install that and run this again." >&2
        return 1
    fi
)

# Sets cargo_deb to a cargo-deb of the version that was looked at: the machine's, or one of
# our own below the target directory. Unoptimized it is built in a third of the time, and
# has little to do.
need_cargo_deb() {
    local version=3.8.0 tools
    cargo_deb=$(command -v cargo-deb || true)
    if [ -n "$cargo_deb" ] && [ "$("$cargo_deb" --version)" = "cargo-deb $version" ]; then
        return
    fi
    tools=$(target_directory)/tools
    cargo_deb=$tools/bin/cargo-deb
    if [ "$("$cargo_deb" --version 2>/dev/null)" != "cargo-deb $version" ]; then
        say "installing: cargo-deb $version, into $tools"
        cargo install --quiet --locked --debug --no-default-features --version "$version" \
            --root "$tools" --target-dir "$tools/build" cargo-deb </dev/null
        rm -r "$tools/build"
    fi
}

# Lets node find node-postgres in a directory of our own, in the versions of its lock file.
need_node_postgres() {
    local modules source=tests/drivers/node-postgres
    modules=$(target_directory)/node-postgres
    if ! cmp -s "$source/package-lock.json" "$modules/installed"; then
        need_packages npm
        say "installing: node-postgres, into $modules"
        mkdir -p "$modules"
        cp "$source/package.json" "$source/package-lock.json" "$modules"
        npm ci --prefix "$modules" --loglevel=error --ignore-scripts --no-audit --no-fund \
            </dev/null >/dev/null
        cp "$source/package-lock.json" "$modules/installed"
    fi
    export NODE_PATH=$modules/node_modules
}

# Prints where cargo puts what it builds, whatever variable or file decides it.
target_directory() {
    cargo metadata --no-deps --format-version 1 --manifest-path "$root/Cargo.toml" |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}
