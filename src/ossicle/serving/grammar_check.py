"""Whether a shape of answers can be used, tried out in a process of its own: some schemas take hours to read."""

import json
import subprocess
import sys
from functools import lru_cache
from threading import BoundedSemaphore

from ossicle.chat.grammar import AnswerGrammar, GrammarCompiler
from ossicle.errors import RequestError

TIME_S = 5.0
"""Ordinary shapes take a tenth of a second, most of it for the start of the process."""
_MAX_PROCESSES = 2
_MAX_KEPT = 256
"""Shapes that were found good are not tried again."""
_CODE = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))  # it does not outlive a server that is killed
except ImportError:
    pass
import llguidance
sys.stdout.write(llguidance.LLMatcher.validate_grammar(sys.stdin.read(), None) or "")
"""
COMMAND = (sys.executable, "-c", _CODE)
"""Reads a shape on its standard input, and writes what is wrong with it."""
_processes = BoundedSemaphore(_MAX_PROCESSES)


def check_grammar(compiler: GrammarCompiler, grammar: AnswerGrammar) -> None:
    """Checks a shape before the worker reads it, which all answers wait for; call it in a thread.

    Raises:
        RequestError: it is not valid, or takes too long to read
    """
    _check(json.dumps({"grammars": [compiler.write(grammar)]}))


@lru_cache(_MAX_KEPT)
def _check(written: str) -> None:
    with _processes:
        try:
            done = subprocess.run(COMMAND, input=written, capture_output=True, text=True, timeout=TIME_S)
        except subprocess.TimeoutExpired as error:
            raise RequestError(
                f"the JSON schema takes more than {TIME_S:g} s to read: send one with fewer and simpler patterns"
            ) from error
    if done.returncode:
        raise RequestError("the JSON schema cannot be used: its reader failed; send a simpler one")
    if done.stdout:
        raise RequestError(f"the JSON schema cannot be used: {' '.join(done.stdout.split())[:300]}")
