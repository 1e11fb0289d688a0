# Completion of sif for bash: sif completes itself.
complete -o nospace -C /usr/bin/sif sif
