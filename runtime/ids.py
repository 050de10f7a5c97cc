"""Names for things that clients see."""

import uuid


def new_id(kind: str) -> str:
    """A new name, such as msg_5f0c...; `kind` says of what."""
    return f"{kind}_{uuid.uuid4().hex}"
