"""`adaptrain completion`: a script for the shell; it asks `adaptrain _complete` for what a word can become."""

from __future__ import annotations

from collections.abc import Sequence

from adaptrain.cli.arguments import split
from adaptrain.errors import UsageError, listed, unknown

_BASH = r"""
_adaptrain() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
    local word="${line##* }"
    COMPREPLY=($(adaptrain _complete "$line" 2>/dev/null))
    # bash takes = and : for the ends of words, so only what follows the last of them is to be replaced
    local known="${word%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$known"}")
    if [[ ${#COMPREPLY[@]} -ge 1 && "${COMPREPLY[0]}" == *[=.] ]]; then compopt -o nospace; fi
}
complete -o default -F _adaptrain adaptrain
"""

_ZSH = r"""
_adaptrain() {
    local -a found open
    found=("${(@f)$(adaptrain _complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    open=(${(M)found:#*[=.]})
    found=(${found:#*[=.]})
    (( $#open )) && compadd -Q -S '' -- $open
    (( $#found )) && compadd -Q -- $found
    (( $#open + $#found )) || _files
}
compdef _adaptrain adaptrain
"""

_FISH = r"""
complete -c adaptrain -a '(adaptrain _complete (commandline -cp) 2>/dev/null)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run(arguments: Sequence[str]) -> int:
    """Print a script."""
    shells = split(arguments).paths
    if len(shells) != 1:
        raise UsageError(f"adaptrain completion needs a shell, one of: {listed(SCRIPTS)}")
    if shells[0] not in SCRIPTS:
        raise UsageError(unknown("completion for", shells[0], SCRIPTS, "The shells are"))
    print(SCRIPTS[shells[0]].strip())
    return 0
