"""CLIP's text tower on its own: captions [N, length] -> embeddings [N, dim] of length 1, beside the image tower that engines run."""

from hpml.data.mapped import PickledByPath


def text_tower(model):
    """The text tower of CLIP's module, in evaluation mode: (ids int64 [N, length],) -> embeddings of length 1."""
    import torch

    class Text(torch.nn.Module):
        def __init__(self, whole) -> None:
            super().__init__()
            self.text_model, self.text_projection = whole.text_model, whole.text_projection

        def forward(self, input_ids):
            pooled = self.text_model(input_ids=input_ids).pooler_output
            return torch.nn.functional.normalize(self.text_projection(pooled), dim=-1)

    return Text(model).eval()


def example_inputs(knobs: dict, batch: int) -> tuple:
    """Seeded ids [batch, length]; the last one ends the text, as the published tokenizer does."""
    import torch

    ids = torch.randint(1, 500, (batch, knobs["length"]), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 49_407
    return (ids,)


class Texts(PickledByPath):
    """Map-style: index -> (int64 ids [length],): all captions that there can be, each once, in an order drawn by seed 0."""

    def __init__(self, tokenizer_file: str, length: int) -> None:
        import random

        from hpml.data.bpe import encode, open_tokenizer
        from hpml.data.captions import every

        lines = every()
        random.Random(0).shuffle(lines)
        self.ids = encode(open_tokenizer(tokenizer_file, length), lines)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple:
        import torch

        return (torch.from_numpy(self.ids[index]),)


def dataset(knobs: dict, frames, *, train: bool) -> Texts:
    """The captions; those of training and those of testing are the same sentences."""
    return Texts(frames.tokenizer_file, knobs["length"])
