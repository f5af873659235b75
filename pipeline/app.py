"""``python -m pipeline``: reads the flags, starts what is needed, runs the job, and tells what it did."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_ENDED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one job and returns the exit status: 0 done, 1 failed, 2 wrong use (nothing was started), 130 ended by a second Ctrl-C."""
    # Before Beam is imported: it logs while it is.
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    # It warns of flags of the Java side, which `options` has checked.
    logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)
    # It warns of each attempt at a server that does not answer; the sentence at the end says it once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    from pipeline import options, runs  # noqa: PLC0415 - see above
    from runners.local.part import StackError  # noqa: PLC0415
    from transforms.errors import SettingsError  # noqa: PLC0415

    try:
        settings = options.read(sys.argv[1:] if arguments is None else arguments)
        logging.getLogger().setLevel(settings.log_level.upper())
        return runs.run(settings)
    except SettingsError as error:
        print(f"farcall: {error}", file=sys.stderr)
        return EXIT_WRONG_USE
    except StackError as error:
        print(f"farcall: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        logging.disable(logging.CRITICAL)  # what is cut off now has much to say, and none of it matters
        print("farcall: ended; what was under way was not finished.", file=sys.stderr)
        return EXIT_ENDED
