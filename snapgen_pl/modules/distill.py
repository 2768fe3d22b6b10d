"""Stage two: pretraining plus what a teacher says (SnapGen, multi-level distillation). Wiring only."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from snapgen_pl.autoencoders.autoencoder import Autoencoder, without_rounding
from snapgen_pl.conditioning.condition import Condition
from snapgen_pl.conditioning.conditioner import Conditioner
from snapgen_pl.config_files import Value, as_value
from snapgen_pl.data.datamodule import ImageData
from snapgen_pl.data.source import Batch, LatentSet, Taught
from snapgen_pl.distill.feature_loss import FeatureLoss, FeaturePair
from snapgen_pl.distill.loss_terms import LossTerm, Role
from snapgen_pl.distill.velocity_error import velocity_error
from snapgen_pl.flow.path import PathSample
from snapgen_pl.models.denoiser import Denoiser, DenoiserOutput
from snapgen_pl.modules.frozen import make_ready
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.teachers.teacher import Question, Teacher


class Distill(Pretrain):
    """Trains a denoiser on data and on a teacher of any architecture, at the same x_t and t.

    To L_task come L_kd, between velocities, and, where pairs of features are given, L_featkd. The teacher is asked once
    a batch; where the conditioner has dropped all that was asked for, the student learns from the teacher's
    unconditional velocity. Terms are added with their weights, unless
    :class:`~callbacks.timestep_scaling.TimestepAwareScaling` scales them.

    Validation tells every term, also those of weight 0, which training leaves out: a run with both weights 0 trains as
    :class:`~snapgen_pl.modules.pretrain.Pretrain` does, and says how near it comes to a teacher that it never heard.

    Args:
        denoiser: as in Pretrain.
        conditioner: as in Pretrain.
        autoencoder: as in Pretrain; the teacher's latents must be its.
        teacher: frozen, kept out of checkpoints.
        features: which features learn from which of the teacher's; their projections are trained along.
        output_weight: of L_kd, at least 0.
        feature_weight: of L_featkd, likewise.
        task_weight: of L_task, likewise.
        **pretrain: as in Pretrain.

    Raises:
        ValueError: where the parts do not fit together.

    Attributes:
        draws_as: what draws from its weights, without a teacher.
    """

    draws_as: ClassVar[type[Pretrain]] = Pretrain
    takes_teacher_outputs = True

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioner,
        autoencoder: Autoencoder,
        teacher: Teacher,
        features: Sequence[FeaturePair] = (),
        output_weight: float = 1.0,
        feature_weight: float = 1.0,
        task_weight: float = 1.0,
        **pretrain: Any,
    ) -> None:
        super().__init__(denoiser, conditioner, autoencoder, **pretrain)
        if min(output_weight, feature_weight, task_weight) < 0:
            raise ValueError(
                f"output_weight is {output_weight}, feature_weight {feature_weight}, task_weight {task_weight}; all "
                "must be >= 0"
            )
        self.teacher = teacher
        self._asks = True
        self.feature_loss = FeatureLoss(features) if features else None
        self._weights: dict[Role, float] = {"task": task_weight, "kd": output_weight}
        if self.feature_loss is not None:
            self._weights["feature"] = feature_weight
            self.feature_loss.requires_grad_(feature_weight > 0)  # DDP waits for every weight that needs a gradient
        if not self.loss_roles:
            raise ValueError("task_weight, output_weight and feature_weight are all 0; nothing would be learned")
        _check_teacher(teacher, denoiser, self.feature_loss)

    @property
    def loss_roles(self) -> Mapping[str, Role]:  # type: ignore[override]  # here it depends on the weights
        """By name, the role of every term that is trained on."""
        return {role: role for role, weight in self._weights.items() if weight}

    @property
    def validated(self) -> Collection[str]:
        """The names of all terms, those of weight 0 too."""
        return tuple(self._weights)

    def encoders(self) -> Mapping[str, str]:
        """The student's and the teacher's; those of one name are one.

        Raises:
            ValueError: where two of one name differ.
        """
        own, teachers = super().encoders(), self.teacher.encoders()
        if wrong := [name for name in own if teachers.get(name, own[name]) != own[name]]:
            raise ValueError(
                f"student and teacher have different encoders called {', '.join(wrong)}; rename one, or set them alike"
            )
        return {**own, **teachers}

    def setup(self, stage: str) -> None:
        """Also reads the teacher's weights, where losses are taken, or checks that its outputs are stored."""
        super().setup(stage)
        data = self._data()
        self._asks = self.needs_teacher(stage)
        if not self._asks:
            return
        self._check_data(data)
        self.teacher.check_autoencoder(self.autoencoder.identity())
        if data.taught is not None:
            self._asks = False
            data.taught.choose(self.teacher_features)
            # The weights are read for their SHA-256: by one process.
            facts = self.teacher_facts() if self.trainer.is_global_zero else {}
            data.taught.check_facts(self.trainer.strategy.broadcast(facts))
            if stage == "fit" and data.verify:
                data.taught.check()
            return
        make_ready(self.trainer, lambda folder: self.teacher.ready(folder, data.classes))

    def configure_model(self) -> None:
        """Also puts the teacher where it computes."""
        super().configure_model()
        if not self._asks:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        self.teacher.place(self.device, mesh)

    def trained(self) -> list[nn.Module]:
        """Also the features' projections."""
        return [*super().trained(), *([] if self.feature_loss is None else [self.feature_loss])]

    @property
    def counted(self) -> dict[Role, float]:
        """The weights of the terms that are taken now: in training, of those that have any."""
        return {role: weight for role, weight in self._weights.items() if weight or not self.training}

    @property
    def asked_features(self) -> tuple[str, ...]:
        """The student's features that are compared."""
        return () if self.feature_loss is None or "feature" not in self.counted else self.feature_loss.student_features

    def terms(self, output: DenoiserOutput, batch: Batch, path: PathSample, condition: Condition) -> list[LossTerm]:
        """L_task, L_kd and L_featkd per sample, in fp32."""
        weights = self.counted
        terms = [term._replace(weight=weights["task"]) for term in super().terms(output, batch, path, condition)
                 if "task" in weights]  # fmt: skip
        if not self.listens:
            return terms
        taught = batch.taught
        if taught is None:
            taught = self.answer(path, self.ask(batch, condition))
        if "kd" in weights:
            error_B = velocity_error(output.velocity_BCHW, taught.velocity_BCHW.float())
            terms.append(LossTerm("kd", "kd", error_B, weights["kd"]))
        if self.feature_loss is not None and "feature" in weights:
            features = [taught.features[name] for name in self.feature_loss.teacher_features]
            error_B = self.feature_loss(output.features, features)
            terms.append(LossTerm("feature", "feature", error_B, weights["feature"]))
        return terms

    @property
    def listens(self) -> bool:
        """Whether terms are taken now that the teacher's answer is needed for."""
        return not self.counted.keys().isdisjoint({"kd", "feature"})

    def ask(self, batch: Batch, condition: Condition) -> Question:
        """The question that a batch is to the teacher.

        Args:
            batch: as it came.
            condition: what is left of the batch's: where that is nothing, the teacher is asked for nothing.
        """
        return self.teacher.ask(batch.condition, self.conditioner.asks_nothing(condition))

    def answer(self, path: PathSample, question: Question) -> Taught:
        """What the teacher says of noisy latents, with the features that terms are taken of now."""
        features = self.teacher_features if "feature" in self.counted else ()
        output = self.teacher(path.x_BCHW, path.t_B, question, features)
        return Taught(output.velocity_BCHW, dict(zip(features, output.features, strict=True)))

    def needs_teacher(self, stage: str) -> bool:
        """Whether the teacher is asked, unless what it says is stored: where losses are taken."""
        return stage != "predict"

    @property
    def teacher_features(self) -> tuple[str, ...]:
        """The teacher's features that are learned from, each once."""
        return () if self.feature_loss is None else tuple(dict.fromkeys(self.feature_loss.teacher_features))

    def teacher_facts(self) -> dict[str, Value]:
        """What the teacher's outputs depend on besides the images: the teacher, and how x_t and t are drawn."""
        data, autoencoder = self._data(), self.autoencoder.identity()
        if isinstance(data.source.train, LatentSet):  # whoever trains on latents decodes as he likes
            autoencoder = without_rounding(autoencoder)
        return as_value(
            {
                "teacher": self.teacher.identity(),
                "text_states": {name: data.stored_weights().get(name) for name in self.teacher.encoders()},
                "autoencoder": autoencoder,
                "image_size": data.image_size,
                "flip_seed": data.flip_seed,
                "draws": data.draws,
                "timesteps": repr(self.timesteps),
                "seed": self.seed,
                "dropping": self.conditioner.dropping(),
            }
        )

    def _check_data(self, data: ImageData) -> None:
        if data.condition != self.teacher.takes:
            raise ValueError(
                f"data.condition is {data.condition}, but the teacher takes {self.teacher.takes}s; give another "
                f"teacher, or set --data.condition {self.teacher.takes}"
            )


def _check_teacher(teacher: Teacher, student: Denoiser, features: FeatureLoss | None) -> None:
    if teacher.in_channels != student.in_channels:
        raise ValueError(
            f"the teacher's latents have {teacher.in_channels} channels, the student's {student.in_channels}; "
            "both must work on the latents of one autoencoder"
        )
    if features is None:
        return
    student.check_features(features.student_features)
    teacher.check_features(features.teacher_features)
    for pair in features.pairs:
        pair.check_channels(student.feature_channels, teacher.feature_channels)
