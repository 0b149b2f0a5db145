"""SplitEE-S: SplitEE with what shallower exits showed on the way."""

from __future__ import annotations

from offramp.policy.i_splitee import ISplitEE

__all__ = ["SplitEES"]


class SplitEES(ISplitEE):
    """SplitEE with side observations (Bajpai et al. 2023, arXiv 2309.09195, SplitEE-S).

    I-SplitEE is the same algorithm, published later for images; they differ in their usual α and in the cost
    model that they were published with (`CostModel`: heads cost λ/5 here, nothing there).

    Args:
        alpha: α, the gates' threshold; None takes the bundle's own. The paper's are .7 to .85.
        send_input: Whether sending the input is an arm too.
        mu: μ, the weight of cost.
        c: The weight of exploration.
        audit: ε, as I-SplitEE has it.
        published: Whether it learns from what a replay alone can know.
        discount: What is left of everything known after each play; 1 forgets nothing.
        window: The plays that count; None counts all.
        seed: Of the draws of audits.

    Raises:
        ConfigError: As I-SplitEE's.
    """

    name = "splitee-s"

    def __init__(
        self,
        *,
        alpha: float | None = 0.7,
        send_input: bool = False,
        mu: float = 1.0,
        c: float = 1.0,
        audit: float = 0.0,
        published: bool = False,
        discount: float = 1.0,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            alpha=alpha,
            send_input=send_input,
            mu=mu,
            c=c,
            audit=audit,
            published=published,
            discount=discount,
            window=window,
            seed=seed,
        )
