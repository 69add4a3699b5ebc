"""``python -m equipot.deploy.verify FILE``: re-evaluate a deployed file's capsule, print the result as JSON.

`export` runs this in a fresh process, where nothing of the eager model is in memory.
"""

import dataclasses
import json
import sys

from equipot.deploy.load import load_deployed
from equipot.errors import EquipotError


def main(path: str) -> int:
    """Print ``{"deviations": [...]}`` or ``{"error": message}``; exit status 1 for an error."""
    try:
        deviations = load_deployed(path, device="cpu").check_capsule()
    except (EquipotError, RuntimeError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({"deviations": [dataclasses.asdict(deviation) for deviation in deviations]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
