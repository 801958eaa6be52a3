"""The prompt of `--interactive`: history, completion, and commands that Ctrl-C ends.

prompt_toolkit, because it waits for keys in the event loop, where connection and VM go on meanwhile; readline blocks.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from kata.agent_ctl.completion import complete
from kata.agent_ctl.messages import say
from kata.agent_ctl.script import Reader, Step
from kata.agent_ctl.session import Session
from kata.errors import KataError, Unavailable

_PROMPT = "agent> "


class _Completer(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for candidate in complete(document.current_line_before_cursor):
            yield Completion(candidate.text, -candidate.length, display_meta=candidate.about)


def _history() -> History:
    """Kept for the next time, for this user only: there may be secrets in it."""
    root = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = Path(root) / "kata" / "agent-ctl-history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


async def converse(session: Session, *, own_agent: bool) -> None:
    """Read commands and carry them out, until `quit`, Ctrl-D or the end of the agent. Errors are reported.

    Args:
        session: whose connection is opened again after it has broken.
        own_agent: whether the agent is this process's own, which cannot be had again.

    Raises:
        Unavailable: its own agent is gone.
        OSError: the output cannot be written.
    """
    prompt: PromptSession[str] = PromptSession(_PROMPT, history=_history(), completer=_Completer())
    reader = Reader()
    say("`list` lists all commands, `help COMMAND` shows its fields, Tab completes, Ctrl-D ends")
    while True:
        try:
            # Ctrl-C is a key here; the signal stays with whoever handles this process's signals.
            line = await prompt.prompt_async(handle_sigint=False)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            if (step := reader.read(line)) is not None:
                session.check([step])
                if not await _interruptible(session, step):
                    return
        except Unavailable as error:
            if own_agent:
                raise
            say(error.message, hint=error.hint)
            await session.close()
        except KataError as error:
            say(error.message, hint=error.hint)


async def _interruptible(session: Session, step: Step) -> bool:
    """Carry out a step; Ctrl-C ends it, and not the session."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(session.step(step))
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        # Waited for, not awaited: what ends the session as a whole cancels this, and has to reach the step.
        await asyncio.wait([task])
    finally:
        signal.signal(signal.SIGINT, before)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return True if task.cancelled() else task.result()
