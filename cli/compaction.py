"""`elw compact`: a warehouse in, the same one sorted out, and what that gained."""

from __future__ import annotations

from energy_lens.cli.app import app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import Database, ListingFormat, TextFormat, examples
from energy_lens.console import say


@app.command(epilog=examples("elw compact --db elw.duckdb"))
def compact(db: Database = None, form: ListingFormat = TextFormat.table) -> None:
    """Rewrite the warehouse sorted by layer and feature, and without gaps: smaller, and quicker to look features up in.

    Shows the file's size and the time of a look-up, before and after. The old file is replaced when the new one is
    proved equal to it, and by nothing else: whatever stops the command, the warehouse is whole and the same command
    does the rest.
    """
    from energy_lens.warehouse.compaction import compact as compacted
    from energy_lens.warehouse.compaction import gain_rows

    gain = compacted(db)
    print_rows(gain_rows(gain), form)
    if not gain.rewritten:
        say(f"{gain.path} was and is compact.")
        return
    saved = 1 - gain.bytes_after / gain.bytes_before
    change = f"{saved:.0%} smaller" if saved > 0 else f"{-saved:.0%} larger"
    say(f"{gain.path} is sorted now, and {change}.")
