"""Rows that begin alike compute their shared beginning once."""
import torch
import torch.nn.functional as F

from kernels.products import rounded


class PrefixTree:
    r"""Rows of token ids as the nodes of a tree: rows that begin alike share that beginning.

        a b c d        a - b - c - d         8 places, 6 nodes: 6 tokens to compute,
        a b e f              \ e - f         and no pad among them

    Equal tokens after equal tokens have equal hidden states, so each node is computed once; only
    attention needs the rows. K completions of one prompt cost one prompt. Unused nodes fill N up to
    a multiple of 16 (products.ROWS): they have no place and no gradient.

        hidden = body(tree.ids, tree.positions, tree.over(causal))     # [N, C]
        ends = hidden[tree.ends]                                       # [B, C]
    """

    def __init__(self, rows, device="cpu"):
        T, seen, ids, positions, places = max(map(len, rows)), {}, [], [], []
        nodes, ends = torch.zeros(len(rows), T, dtype=torch.long), []
        for b, row in enumerate(rows):
            node, path = -1, []
            for t, token in enumerate(row):
                node = seen.setdefault((node, token), len(ids))
                if node == len(ids):
                    ids.append(token)
                    positions.append(t)
                    places.append(b * T + t)
                path.append(node)
            nodes[b, : len(path)] = torch.tensor(path)
            ends.append(node)
        for of_nodes in (ids, positions, places):  # and up to 15 unused nodes
            of_nodes += [0] * (rounded(len(ids)) - len(of_nodes))
        self.ids, self.positions = torch.tensor(ids).to(device), torch.tensor(positions).to(device)
        self.places = torch.tensor(places).to(device)  # [N]: a place b * T + t of each node
        self.nodes = nodes.to(device)  # [B, T]: the node at each place; any node at pads
        self.ends = torch.tensor(ends).to(device)  # [B]: the node of each row's last token

    def over(self, attend):
        """An attention over nodes [N, 3 C] -> [N, C], made from one over rows [B, T, 3 C] ->
        [B, T, C] (model.py: `causal`)."""
        def over_nodes(qkv, n_head):
            y = attend(F.embedding(self.nodes, qkv), n_head)
            return F.embedding(self.places, y.flatten(0, 1))

        return over_nodes
