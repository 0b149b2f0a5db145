import pytest

from offramp.errors import ConfigError
from offramp.policy.base import Context, Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.cost import CostModel
from offramp.policy.dynamic_split import DynamicSplit
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.forecast import Forecast
from offramp.policy.i_splitee import ISplitEE
from offramp.policy.random import RandomArm
from offramp.policy.registry import POLICIES, make_policy, parse_policy
from offramp.policy.splitee import SplitEE
from offramp.policy.splitee_s import SplitEES
from offramp.policy.uee import UEEUCB

CONTEXT = Context(
    splits=(-1, 0, 1, 2),
    exits=(0, 1),
    last=2,
    thresholds=(0.5, 0.5, None),
    modes={-1: ("float",), 0: ("float",), 1: ("float",)},
    mode="float",
    cost=CostModel.in_layers((1, 2, 3)),
    forecast=Forecast(stage_ms=(1, 1, 1), exit_ms=(0, 0, 0), tail_ms=(3, 2, 1), sent_bytes=(9, 9, 9)),
)


@pytest.mark.parametrize("name", [*POLICIES, "split-0", "split-1-all"])
def test_every_name_makes_a_policy_that_chooses_what_the_context_allows(name):
    policy = make_policy(name, alpha=0.5, seed=1)
    assert isinstance(policy, Policy)
    assert policy.choose(CONTEXT).split in CONTEXT.splits
    assert make_policy(name) is not make_policy(name)  # a learner is never shared


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("i-splitee", ISplitEE),
        ("splitee", SplitEE),
        ("splitee-s", SplitEES),
        ("uee-ucb", UEEUCB),
        ("dynamic-split", DynamicSplit),
        ("cascade", ThresholdCascade),
        ("random", RandomArm),
        ("edge-only", EdgeOnly),
        ("server-only", ServerOnly),
        ("split-3", FixedSplit),
    ],
)
def test_names_mean_what_they_say(name, kind):
    assert type(make_policy(name)) is kind


@pytest.mark.parametrize("name", ["i-splitee", "splitee", "splitee-s", "cascade", "random", "split-0"])
@pytest.mark.parametrize("alpha", [0.25, None])
def test_alpha_is_handed_on(name, alpha):
    assert make_policy(name, alpha=alpha).alpha == alpha


def test_the_seed_is_handed_on():
    def draws(seed):
        policy = make_policy("random", seed=seed)
        return [policy.choose(CONTEXT).split for _ in range(40)]

    assert draws(1) == draws(1) != draws(2)


def test_split_k_with_and_without_gate():
    assert make_policy("split-1").choose(CONTEXT).exits == (1,)
    assert make_policy("split-1-all").choose(CONTEXT).exits == ()
    assert make_policy("split-12").split == 12


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("isplitee", "i-splitee"),
        ("splitee_s", "splitee-s"),
        ("uee", "uee-ucb"),
        ("cascades", "cascade"),
        ("edge", "edge-only"),
        ("Server-Only", "server-only"),
        ("split-x", "split-"),
        ("split-1-some", "split-1"),
        ("split--1", "split-"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(ConfigError) as caught:
        make_policy(name)
    message = str(caught.value)
    assert repr(name) in message
    assert near in message.partition("did you mean")[2].partition("?")[0]


def test_a_name_like_none_lists_what_there_is():
    with pytest.raises(ConfigError) as caught:
        make_policy("qqq")
    assert all(name in str(caught.value) for name in POLICIES)


def test_options_reach_the_policy():
    policy = make_policy("splitee-s", audit=0.25, discount=0.9, mu=2.0)
    assert (policy.audit, policy.discount, policy.mu) == (0.25, 0.9, 2.0)
    assert make_policy("cascade", split=1).split == 1


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("i-splitee", "audits", "did you mean 'audit'"),
        ("i-splitee", "drif", "did you mean 'drift'"),
        (
            "splitee",
            "published",
            "splitee takes no option 'published'.*It takes: alpha, send_input, mu, c, discount, window, drift$",
        ),
        ("edge-only", "audit", "It takes: none"),
        ("split-1", "audit", "split-1 takes no option 'audit'"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(name, option, said):
    with pytest.raises(ConfigError, match=said):
        make_policy(name, **{option: 0.1})


@pytest.mark.parametrize(
    ("name", "option", "value", "said"),
    [
        ("i-splitee", "audit", "much", "i-splitee: audit is float, not 'much'"),
        ("i-splitee", "audit", True, "audit is float, not True"),
        ("i-splitee", "published", 1, "published is bool, not 1"),
        ("splitee", "window", 10.0, r"window is int \| None, not 10.0"),
        ("cascade", "exits", 1, r"exits is tuple\[int, ...\] \| None, not 1"),
        ("random", "seed", 1.5, "seed is int, not 1.5"),
        ("split-0", "alpha", "high", "split-0: alpha is float"),
        ("split-0", "alpha", 1.5, "between 0 and 1, not 1.5"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(name, option, value, said):
    with pytest.raises(ConfigError, match=said):
        make_policy(name, **{option: value})


@pytest.mark.parametrize("name", [None, 3, ISplitEE])
def test_a_name_is_a_word(name):
    with pytest.raises(ConfigError, match="named by a word, such as 'i-splitee', not"):
        make_policy(name)


# --- as typed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("split-1-all", ("split-1-all", {})),
        ("i-splitee,audit=0.05,window=500", ("i-splitee", {"audit": 0.05, "window": 500})),
        ("i-splitee,published=True,mu=1e-2", ("i-splitee", {"published": True, "mu": 0.01})),
        ("splitee,alpha=none,drift=adwin", ("splitee", {"alpha": None, "drift": "adwin"})),
    ],
)
def test_a_policy_as_typed(text, parsed):
    assert parse_policy(text) == parsed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("i-splitee,audit", "'audit' in 'i-splitee,audit' is no OPTION=VALUE"),
        ("i-splitee,", "'' in 'i-splitee,' is no OPTION=VALUE"),
        ("i-splitee,=3", "'=3' in"),
        ("i-splitee,c=", "'c=' in"),
        ("i-splitee,c=1,mu=2,c=3", "names c twice"),
        ("random,seed=3", "the seed is given by --seed"),
    ],
)
def test_what_is_no_policy_as_typed(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_policy(text)
