"""Render chat templates in a process of their own, which is ended when one takes too long or too much.

A template is a program of whoever made the model: it may count to 10^9, double a text forty times, or crash Python's
parser. One process renders all conversations of a run; it is given a little time for each, and what it does not use.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

from planner.closing import Closing
from planner.errors import InferenceError, ModelError, PlannerError, UsageError, option

__all__ = ["Renderer"]

_CODE = "import sys; from planner.llama.collect.template import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
_LOADING = 60.0  # seconds that Python and Jinja may take
_SAVED = 5.0  # seconds that a template may have in reserve
_EACH, _PER_BYTE = 0.02, 1e-6  # seconds for a conversation: twenty times what they take
_TEXT, _TIMES = 1 << 18, 64  # characters of a rendered conversation: so many, and so many times its own


def _remedy() -> str:
    return f"Give text that is rendered already: {option('text', 'FILE')} {option('parse_special')}."


class Renderer(Closing):
    """A model's chat template in its process; a context manager, which ends the process.

    `model` is for messages; `now` is what the template takes for the time, in ISO 8601. Raises InferenceError where
    Jinja is missing, ModelError for a template that Jinja does not understand.
    """

    def __init__(self, model: str, source: str, *, bos: str, eos: str, now: str) -> None:
        if importlib.util.find_spec("jinja2") is None:
            raise InferenceError(f"jinja2 is needed for {option('chat')}.", "pip install 'gguf-planner[llama]'")
        self._model, self._left = model, _SAVED
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            self._answer(b"", _LOADING, "its start")
            answer = self._ask({"source": source, "bos": bos, "eos": eos, "now": now}, "the template itself")
        except BaseException:
            self.close()
            raise
        if (failure := answer.get("failure")) is not None:
            self.close()
            raise ModelError(f"{model}: its chat template cannot be read: {failure}.", _remedy())

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was written last finds no reader
                    continue
        self._process.wait()

    def render(
        self, where: str, messages: list[dict[str, Any]], tools: list[Any] | None, *, asking: bool = False
    ) -> str:
        """Render the conversation that stands at `where`; if `asking`, up to where an answer begins. Raises UsageError
        where the template refuses it, ModelError where it takes too long or too much."""
        answer = self._ask({"messages": messages, "tools": tools, "asking": asking}, where)
        if (failure := answer.get("failure")) is not None:
            raise UsageError(
                f"{where}: the model's chat template refuses it: {failure}.",
                "Templates may want user and assistant in turn, and know no other roles.",
            )
        return str(answer["text"])

    def _ask(self, request: dict[str, Any], where: str) -> dict[str, Any]:
        try:
            size = len(json.dumps(request))
            data = json.dumps({**request, "most": _TEXT + _TIMES * size}).encode("ascii") + b"\n"
        except RecursionError as error:
            raise UsageError(f"{where}: it is nested too deeply.", "Take that conversation out.") from error
        self._left = min(self._left + _EACH, _SAVED) + _PER_BYTE * size
        answer = self._answer(data, self._left, where)
        if answer.get("much"):
            raise self._too_much(f"wants {answer['failure']}", where)
        return answer

    def _answer(self, data: bytes, seconds: float, where: str) -> dict[str, Any]:
        """Return the process's answer to a line, within so many seconds, which are taken off those left."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        began = time.monotonic()
        try:
            process.stdin.write(data)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        self._left -= time.monotonic() - began
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        if late.is_set():
            raise self._too_much(f"does not come to an end: {seconds:.1f} seconds were not enough", where)
        raise self._too_much(f"ended the process that ran it (status {process.wait()})", where)

    def _too_much(self, what: str, where: str) -> PlannerError:
        return ModelError(f"{self._model}: its chat template {what}, for {where}.", _remedy())
