"""Distillation losses: modules over pure functions, usable with or without Composer."""

from composer_distill.losses.adaptive_kl_divergence import (
    AdaptiveKLDivergence,
    adaptive_kl_divergence,
)
from composer_distill.losses.alpha_beta_divergence import (
    AlphaBetaDivergence,
    alpha_beta_divergence,
)
from composer_distill.losses.base import DistillationLoss, WeightedSum
from composer_distill.losses.bernoulli_kl import BernoulliKL, bernoulli_kl
from composer_distill.losses.cosine_embedding import CosineEmbedding, cosine_embedding
from composer_distill.losses.decoupled_kd import DecoupledKD, decoupled_kd
from composer_distill.losses.dist import DIST, dist
from composer_distill.losses.features.attention_kl import AttentionKL, attention_kl
from composer_distill.losses.features.attention_mse import AttentionMSE, attention_mse
from composer_distill.losses.features.attention_transfer import (
    AttentionTransfer,
    attention_transfer,
)
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.cka import CKA, cka
from composer_distill.losses.features.hidden_cosine import HiddenCosine, hidden_cosine
from composer_distill.losses.features.hidden_mse import HiddenMSE, hidden_mse
from composer_distill.losses.features.minilm_relation import MiniLMRelation, minilm_relation
from composer_distill.losses.features.neuron_selectivity import (
    NeuronSelectivity,
    neuron_selectivity,
)
from composer_distill.losses.features.probabilistic_transfer import (
    ProbabilisticTransfer,
    probabilistic_transfer,
)
from composer_distill.losses.features.relational_kd import RelationalKD, relational_kd
from composer_distill.losses.features.similarity_preserving import (
    SimilarityPreserving,
    similarity_preserving,
)
from composer_distill.losses.features.variational_information import (
    VariationalInformation,
    variational_information,
)
from composer_distill.losses.fused_linear_kl import FusedLinearKL, fused_linear_kl
from composer_distill.losses.hard_label import HardLabel, hard_label
from composer_distill.losses.ikl import IKL, ikl
from composer_distill.losses.jensen_shannon import (
    JensenShannonDivergence,
    jensen_shannon_divergence,
)
from composer_distill.losses.kl_divergence import KLDivergence, kl_divergence
from composer_distill.losses.logit_mse import LogitMSE, logit_mse
from composer_distill.losses.normalized_kd import NormalizedKD, normalized_kd
from composer_distill.losses.reverse_kl_divergence import (
    ReverseKLDivergence,
    reverse_kl_divergence,
)
from composer_distill.losses.reverse_skew_kl_divergence import (
    ReverseSkewKLDivergence,
    reverse_skew_kl_divergence,
)
from composer_distill.losses.skew_kl_divergence import SkewKLDivergence, skew_kl_divergence
from composer_distill.losses.soft_cross_entropy import SoftCrossEntropy, soft_cross_entropy
from composer_distill.losses.standardized_logits import StandardizedLogits, standardize
from composer_distill.losses.top_k_kl import TopKKL, top_k_kl
from composer_distill.losses.total_variation import TotalVariation, total_variation

__all__ = [
    "CKA",
    "DIST",
    "IKL",
    "AdaptiveKLDivergence",
    "AlphaBetaDivergence",
    "AttentionKL",
    "AttentionMSE",
    "AttentionTransfer",
    "BernoulliKL",
    "CosineEmbedding",
    "DecoupledKD",
    "DistillationLoss",
    "FeatureLoss",
    "FusedLinearKL",
    "HardLabel",
    "HiddenCosine",
    "HiddenMSE",
    "JensenShannonDivergence",
    "KLDivergence",
    "LogitMSE",
    "MiniLMRelation",
    "NeuronSelectivity",
    "NormalizedKD",
    "ProbabilisticTransfer",
    "RelationalKD",
    "ReverseKLDivergence",
    "ReverseSkewKLDivergence",
    "SimilarityPreserving",
    "SkewKLDivergence",
    "SoftCrossEntropy",
    "StandardizedLogits",
    "TopKKL",
    "TotalVariation",
    "VariationalInformation",
    "WeightedSum",
    "adaptive_kl_divergence",
    "alpha_beta_divergence",
    "attention_kl",
    "attention_mse",
    "attention_transfer",
    "bernoulli_kl",
    "cka",
    "cosine_embedding",
    "decoupled_kd",
    "dist",
    "fused_linear_kl",
    "hard_label",
    "hidden_cosine",
    "hidden_mse",
    "ikl",
    "jensen_shannon_divergence",
    "kl_divergence",
    "logit_mse",
    "minilm_relation",
    "neuron_selectivity",
    "normalized_kd",
    "probabilistic_transfer",
    "relational_kd",
    "reverse_kl_divergence",
    "reverse_skew_kl_divergence",
    "similarity_preserving",
    "skew_kl_divergence",
    "soft_cross_entropy",
    "standardize",
    "top_k_kl",
    "total_variation",
    "variational_information",
]
