"""Print the README's two set-up commands, one a line, so that they are written down in one place only.

They are the lines of the code blocks right below the two headings that begin with "Command".
"""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def setup_commands() -> list[str]:
    """The commands, in order."""
    return re.findall(r"^#+ Command [^\n]*\n+```bash\n([^\n]+)\n```", README.read_text(encoding="utf-8"), re.MULTILINE)


if __name__ == "__main__":
    print("\n".join(setup_commands()))
