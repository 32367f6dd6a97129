#!/usr/bin/env bash
# Base images for the Docker tests. Those that cannot be pulled are stood in for by Debian's
# packages, under the same names; `./standins.sh remove` removes these again.
set -euo pipefail

standin=ownpod-standin
pythons=(python:3.12-slim python:3.11-slim)
redis=redis:8-alpine

is_standin() { [ "$(docker image inspect --format '{{index .Config.Labels "standin"}}' "$1" 2>/dev/null)" = yes ]; }
exists() { docker image inspect "$1" >/dev/null 2>&1; }

if [ "${1-}" = remove ]; then
    for image in "${pythons[@]}" "$redis"; do
        if is_standin "$image"; then docker image rm --force "$image"; fi
    done
    docker image rm --force "$standin" >/dev/null 2>&1 || true
    exit
fi

# Prints "<mirror> <release> <components>" of this machine's own apt sources, for the release that it runs.
apt_source() {
    local distribution release sources mirror
    distribution=$(. /etc/os-release && echo "$ID")
    release=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    # The origin tells the distribution's own packages from those that others publish for the same release.
    sources=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v origin="$distribution" -v release="$release" 'tolower($1) == origin && $2 == release { print $3, $4 }' | sort -u)
    mirror=$(awk '$1 == "main" { print $2; exit }' <<<"$sources")
    if [ -z "$mirror" ]; then
        echo "apt knows no packages of $distribution $release; apt-get update, then see apt-get indextargets" >&2
        return 1
    fi
    local components
    components=$(awk -v mirror="$mirror" '$2 == mirror { print $1 }' <<<"$sources" | paste -sd, -)
    # Images for clouds name a file with mirrors.
    if [[ $mirror == mirror+file:* ]]; then mirror=$(grep -om1 '^http[^[:space:]]*' "${mirror#mirror+file:}"); fi
    echo "$mirror $release $components"
}

if [ "${1-}" = apt-source ]; then
    apt_source
    exit
fi

missing=()
for image in "${pythons[@]}" "$redis"; do
    exists "$image" || timeout 300 docker pull --quiet "$image" 2>/dev/null || missing+=("$image")
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "cannot be pulled: ${missing[*]}; building stand-ins from Debian packages" >&2

if ! exists "$standin"; then
    command -v debootstrap >/dev/null || { echo "debootstrap is needed: apt-get install debootstrap" >&2; exit 1; }
    source=$(apt_source)
    read -r mirror release components <<<"$source"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --components="$components" \
        --include=ca-certificates,python3,python3-venv,python3-pip,redis-server,redis-tools \
        "$release" "$root" "$mirror" >"${TMPDIR:-/tmp}/debootstrap.log"
    # As in the images they stand in for: `python`, and a pip that installs.
    ln -s python3 "$root/usr/bin/python"
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    # Packages come from the index that this machine's pip uses, unless that is a directory.
    index=${PIP_INDEX_URL:-$(pip config get global.index-url 2>/dev/null || true)}
    if [[ $index == http* ]]; then printf '[global]\nindex-url = %s\n' "$index" >"$root/etc/pip.conf"; fi
    # The index may be behind a proxy that this host's certificates know.
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    tar -C "$root" --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* --exclude=./var/cache/apt/archives/*.deb -c . |
        docker import --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' \
            --change 'ENV PIP_ROOT_USER_ACTION=ignore' --change 'LABEL standin=yes' - "$standin"
fi

for image in "${missing[@]}"; do
    if [ "$image" = "$redis" ]; then
        # Like the real one, it can be reached from other containers, and works in /data.
        docker build --quiet --tag "$image" - <<DOCKERFILE
FROM $standin
RUN printf '#!/bin/sh\nexec /usr/bin/redis-server "\$@" --protected-mode no --bind 0.0.0.0\n' \
      >/usr/local/bin/redis-server && chmod +x /usr/local/bin/redis-server && mkdir -p /data
WORKDIR /data
VOLUME /data
CMD ["redis-server"]
DOCKERFILE
    else
        docker tag "$standin" "$image"
    fi
done
