"""What stands on a terminal after all that was written to it: enough of one to read what the console draws."""

import re


def screen(written: str) -> list[str]:
    """The lines, with colours left out, after every movement up and every clearing to the end."""
    lines = [""]
    row = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r" or token.endswith("m"):
            continue
        elif token.endswith("A"):
            row -= int(token[2:-1])
            assert row >= 0, "the cursor left the screen"
        elif token == "\x1b[J":
            lines = [*lines[:row], ""]
        else:
            assert not token.startswith("\x1b"), f"what does {token!r} do?"
            lines[row] += token
    return [line.rstrip() for line in lines]
