"""``python -m pipeline`` with a step that forgets its state, to show that the loss is seen."""

from __future__ import annotations

from pipeline.app import main
from tests.e2e import broken
from transforms.ask import step

if __name__ == "__main__":
    step._Ask = broken.ForgetsState  # type: ignore[misc]
    raise SystemExit(main())
