"""What is wrong with data, raised or counted, never silent."""

import collections


class DataError(ValueError):
    """Input that cannot be used, with its file and line, or shards that cannot be trusted."""


class BadInput:
    """Raises on bad input, or skips and counts it where the config says so.

    Attributes:
        counts: {reason: number of pieces skipped}.
        examples: {reason: the first message}.
    """

    def __init__(self, policy="error"):
        if policy not in ("error", "skip"):
            raise DataError(
                f"config.data.bad_input={policy!r} is unknown. Known: error, skip.\n"
                "  Try --config.data.bad_input=error."
            )
        self.policy = policy
        self.counts = collections.Counter()
        self.examples = {}

    def __call__(self, reason, where, detail=""):
        """Reports one bad piece: `reason` is a short class, `where` a file and line.

        Raises:
            DataError: the policy is "error".
        """
        message = f"{where}: {reason}" + (f": {detail}" if detail else "") + "."
        if self.policy == "error":
            raise DataError(
                f"{message}\n  Mend the file, or skip and count such input with "
                "--config.data.bad_input=skip."
            )
        self._count(reason, message)

    def leave_out(self, reason, where):
        """Counts a piece that is sound but no document, such as a binary file; never raises."""
        self._count(reason, f"{where}: {reason}.")

    def _count(self, reason, message):
        self.counts[reason] += 1
        self.examples.setdefault(reason, message)
