"""Change what a document holds, as an autoprune that wrote no digests would have written it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` alter the content, and leave out the digest."""
    content = json.loads(path.read_text())
    content.pop("digest", None)
    change(content)
    path.write_text(json.dumps(content))
