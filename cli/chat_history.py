"""What the user typed in earlier chats, in a file that nobody else can read."""

import os

from platformdirs import user_state_path
from prompt_toolkit.history import FileHistory, History, InMemoryHistory


def open_history() -> History:
    """Return the user's history; one that ends with the chat if no file can be kept."""
    path = user_state_path("penstock", appauthor=False) / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
