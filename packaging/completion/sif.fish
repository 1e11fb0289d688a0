# Completion of sif for fish: sif completes itself, when it gets the line as COMP_LINE.
function __sif_complete
    set -lx COMP_LINE (commandline -cp)
    set -lx COMP_POINT (string length -- $COMP_LINE)
    /usr/bin/sif 2>/dev/null
end
complete -c sif -f -a '(__sif_complete)'
