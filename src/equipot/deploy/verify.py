"""``python -m equipot.deploy.verify FILE``: re-evaluate a deployed file's capsule, print the result as JSON.

`export` runs this in a fresh process, where nothing of the eager model is in memory.
"""

import json
import sys
from dataclasses import asdict, replace

from equipot.deploy.load import load_deployed
from equipot.errors import EquipotError


def main(path: str) -> int:
    """Print ``{"deviations": [...]}`` or ``{"error": message}``; exit status 1 for an error."""
    try:
        model = load_deployed(path, device="cpu")
        deviations = model.check_capsule()
        if model.engine is not None:
            deviations += replace(model, engine=None).check_capsule()
    except (EquipotError, RuntimeError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({"deviations": [asdict(deviation) for deviation in deviations]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
