//! What weights take in memory, told from headers: in their mapped files, and beside them.

use safetensors::Dtype as Stored;

use super::header::dtype;
use super::{Residency, Weights, packs};

/// Bytes that the tensors at a place take once they have been computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Pages of their files.
    pub mapped: u64,
    /// What is made of them, where they are not used as they are: converted, packed on the way, changed by LoRAs.
    pub heap: u64,
    /// What is made of them anew whenever they are used, and let go of: floats of 8 bits, and the steps on the way to what
    /// is held.
    pub passing: u64,
}

impl Footprint {
    /// Both together.
    pub fn held(self) -> u64 {
        self.mapped + self.heap
    }

    fn plus(self, other: Self) -> Self {
        Self {
            mapped: self.mapped + other.mapped,
            heap: self.heap + other.heap,
            passing: self.passing + other.passing,
        }
    }
}

/// What a network of blocks takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockFootprint {
    /// All that is in no block.
    pub rest: Footprint,
    /// How many blocks there are.
    pub count: usize,
    /// The largest of them.
    pub block: Footprint,
    /// All of them.
    pub blocks: Footprint,
    /// Whether a block lets go of its file once it was computed with, because it holds what was made of it.
    pub settles: bool,
}

impl BlockFootprint {
    /// Bytes in memory at once when blocks are kept in a way.
    pub fn held(&self, residency: Residency) -> u64 {
        let &Self { rest, count, block, blocks, settles } = self;
        // What `kept` blocks hold, about as large as each other, when none computes.
        let held = |kept: usize| {
            let bytes = if settles { blocks.heap } else { blocks.held() };
            bytes / count.max(1) as u64 * kept as u64
        };
        let resident = held(count) + if settles { block.mapped } else { 0 };
        let passing = rest.passing.max(block.passing);
        rest.held()
            + passing
            + match residency {
                Residency::Resident => resident,
                Residency::Streaming { kept, .. } if kept >= count => resident,
                Residency::Streaming { ahead, kept } => {
                    let ring = (ahead as u64).min((count - kept) as u64 - 1);
                    held(kept) + block.held() + ring * block.mapped
                }
            }
    }

    /// Bytes that are read whenever all blocks are used once.
    pub fn read(&self, residency: Residency) -> u64 {
        match residency {
            Residency::Resident => 0,
            Residency::Streaming { kept, .. } => {
                self.blocks.mapped / self.count.max(1) as u64 * self.count.saturating_sub(kept) as u64
            }
        }
    }
}

impl Weights {
    /// What the tensors at and below this place take.
    pub fn footprint(&self) -> Footprint {
        self.footprints().fold(Footprint::default(), |sum, (_, _, own)| sum.plus(own))
    }

    /// The same of those whose rank is above 2: convolutions hold a copy of theirs, in the order that they compute with.
    pub fn convolution_footprint(&self) -> Footprint {
        self.footprints().fold(Footprint::default(), |sum, (rank, dense, own)| {
            sum.plus(if rank > 2 { Footprint { heap: own.heap.max(dense), ..own } } else { own })
        })
    }

    /// What a network takes whose blocks are at `blocks`.0, .1, …
    pub fn block_footprint(&self, blocks: &str) -> BlockFootprint {
        let all = self.at(blocks);
        let whole = self.footprint();
        let mut found = BlockFootprint::default();
        loop {
            let block = all.at(found.count).footprint();
            if block == Footprint::default() {
                break;
            }
            found.settles |= all.at(found.count).settles();
            found.block = if block.held() > found.block.held() { block } else { found.block };
            found.blocks = found.blocks.plus(block);
            found.count += 1;
        }
        found.rest = Footprint {
            mapped: whole.mapped - found.blocks.mapped,
            heap: whole.heap - found.blocks.heap,
            passing: whole.passing.saturating_sub(found.blocks.passing),
        };
        found
    }

    /// Whether most of what is here is held beside its file once it was computed with, which may then be let go of.
    pub(super) fn settles(&self) -> bool {
        let Footprint { mapped, heap, .. } = self.footprint();
        self.packing().is_some() || 2 * heap > mapped
    }

    /// Rank, bytes of the values in the type that is computed with, and footprint of each tensor at and below this place.
    fn footprints(&self) -> impl Iterator<Item = (usize, u64, Footprint)> {
        let packing = self.packing().map(|packing| (packing, self.block_count()));
        self.tensors_below().filter_map(move |(file, key)| {
            let info = file.info(&key)?;
            let mapped = (info.data_offsets.1 - info.data_offsets.0) as u64;
            let values = info.shape.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
            let dense = values * self.dtype().size() as u64;
            let fp8 = matches!(info.dtype, Stored::F8_E4M3 | Stored::F8_E5M2);
            let coded = fp8 || matches!(info.dtype, Stored::U32 | Stored::U8);
            let packed = packing.is_some_and(|(packing, blocks)| packs::fits(&key, info, packing, blocks));
            let (changed, blocks) = (self.changes(&key), file.quantized(&key));
            let converted = !coded && dtype(info) != Some(self.dtype());
            let (mut heap, mut passing) = (0, 0);
            if packed || changed || (converted && blocks.is_none()) {
                heap = packs::bytes(&key, info, packing, self.dtype());
            } else if let Some(packing) = blocks.and_then(|kind| kind.packing()) {
                heap = values * (packing.bits() + 32 / packing.group()) as u64 / 8; // scales and biases are f16
            }
            if changed {
                passing = 12 * values; // sums in f32
            } else if packed && (converted || blocks.is_some()) {
                passing = 4 * values;
            } else if blocks.is_some() {
                passing = dense.saturating_sub(heap);
            } else if fp8 {
                passing = if packed { 2 * values } else { dense };
            }
            Some((info.shape.len(), dense, Footprint { mapped, heap, passing }))
        })
    }
}
