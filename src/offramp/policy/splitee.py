"""SplitEE: upper confidence bounds over splits, with one exit evaluated per input."""

from __future__ import annotations

from offramp.policy.base import Action, Observation
from offramp.policy.splitting import SplitLearner

__all__ = ["SplitEE"]


class SplitEE(SplitLearner):
    """Learns online, without labels, at which exit to split (Bajpai et al. 2023, arXiv 2309.09195).

    Arms and rewards are `SplitLearner`'s. No head on the way is run, and only the arm played is learned. Its
    reward is always seen: it was sure, or it has offloaded. So nothing is hidden, and no audit is needed.

    The paper's reward counts λ·i, the cost of all heads, where one head's λ(.8(i−1)+1) is paid; ours counts
    what is paid, by the edge's `CostModel`.

    Args:
        alpha: α, the gates' threshold; None takes the bundle's own. The paper's are .7 to .85.
        send_input: Whether sending the input is an arm too.
        mu: μ, the weight of cost.
        c: The weight of exploration.
        discount: What is left of everything known after each play; 1 forgets nothing.
        window: The plays that count; None counts all.

    Raises:
        ConfigError: α outside [0, 1], negative weights, a discount or window that cannot be.
    """

    name = "splitee"
    watches = False

    def __init__(
        self,
        *,
        alpha: float | None = 0.7,
        send_input: bool = False,
        mu: float = 1.0,
        c: float = 1.0,
        discount: float = 1.0,
        window: int | None = None,
    ) -> None:
        super().__init__(alpha=alpha, send_input=send_input, mu=mu, c=c, discount=discount, window=window)

    def update(self, action: Action, observation: Observation) -> None:
        """Learns the reward of the arm played."""
        k = self._played(action)
        self._learn([*(None,) * k, self._reward(k, observation)])
