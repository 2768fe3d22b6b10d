"""How far a velocity is from the one it should be: the loss of pretraining, and of distillation from an output."""

from torch import Tensor


def velocity_error(velocity_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """The mean over C, H, W of (v - target)^2, in fp32.

    Against noise - data it is L_task, against a teacher's velocity at the same x_t and t it is L_kd of SnapGen.

    Args:
        velocity_BCHW: of the network that learns.
        target_BCHW: without gradients.

    Returns:
        One value a sample, (B,).

    Raises:
        ValueError: where the two differ in shape.
    """
    if velocity_BCHW.shape != target_BCHW.shape:
        raise ValueError(
            f"the velocity is {tuple(velocity_BCHW.shape)}, its target {tuple(target_BCHW.shape)}; "
            "they must have one shape: a teacher must work on the student's latents"
        )
    return (velocity_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))
