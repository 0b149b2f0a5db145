"""The same network under another digest."""

import json
import shutil

from offramp.bundle.bundle import Bundle


def other_version(source, target):
    """Writes the bundle of one folder to another, less one mode."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["codecs"] = [codec for codec in manifest["codecs"] if codec["mode"] != "uint2"]
    (target / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.load(target)
