# shellcheck shell=bash
# debian_tool FOLDER COMMAND PACKAGE...: prints where a program of Debian's is: on the PATH, or unpacked into FOLDER, not
# installed. Prints nothing where it cannot be had. Sourced by scripts that need one.
debian_tool() {
  local folder=$1 name=$2 found
  shift 2
  found=$(command -v "$name" || find "$folder" -path "*bin/$name" -type f 2>/dev/null | head -n 1)
  if [ -z "$found" ] && command -v apt-get dpkg >/dev/null; then
    mkdir -p "$folder"
    (
      cd "$folder"
      # Needs no rights, but lists of packages that somebody has fetched.
      apt-get -q download "$@" >download.log 2>&1 || exit 0
      for package in ./*.deb; do dpkg -x "$package" .; done
      rm -f ./*.deb
    )
    found=$(find "$folder" -path "*bin/$name" -type f | head -n 1)
  fi
  [ -z "$found" ] || realpath "$found"
}
