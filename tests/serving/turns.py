"""An edge that asks a server everything that it can be asked, beside one that asks another server the same."""

import offramp as off
from offramp.policy.base import Action, Policy


class Turns(Policy):
    """Every split in turn, in every mode that it has, with compression and without."""

    def __init__(self, manifest):
        self.actions = [
            Action(cut, exits=(), mode=mode, gzip=gzip)
            for cut in range(-1, manifest.last)
            for mode in manifest.modes(cut)
            for gzip in (False, True)
        ]
        self.count = 0

    def choose(self, context):
        self.count += 1
        return self.actions[(self.count - 1) % len(self.actions)]


def both(bundle, servers, make_policy, images):
    """What an edge answers with either server."""
    answers = []
    for address in servers:
        with off.Edge(bundle, address, make_policy(), deadline_ms=30_000) as edge:
            answers.append(list(edge.run(images)))
    return list(zip(*answers, strict=True))
