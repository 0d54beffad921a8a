//! The body of the fuzz target `extent_set`: the set against a bitmap, one bool for a byte.

use driftline_extent::{Extent, ExtentSet};

/// Small enough that extents overlap, touch and nest all the time.
const UNIVERSE: u64 = 256;

const OPS_MAX: usize = 100;

/// Two sets and their models, changed in step. Each operation is three bytes: what, and an
/// extent or a number.
///
/// # Panics
/// If a set and its model differ, or a set is not canonical.
pub fn extent_set(bytes: &[u8]) {
    let (mut set, mut other) = (ExtentSet::new(), ExtentSet::new());
    let (mut model, mut second) = ([false; UNIVERSE as usize], [false; UNIVERSE as usize]);
    // A longer run of operations finds nothing that a short one does not.
    for op in bytes.as_chunks::<3>().0.iter().take(OPS_MAX) {
        let [what, a, b] = op.map(u64::from);
        let extent = Extent::from_bounds(a.min(b), a.max(b) + 1).unwrap_or(UNIT);
        let bits = extent.offset() as usize..extent.end() as usize;
        let granularity = 1 + b % 16;
        match what % 12 {
            0 | 1 => {
                set.insert(extent);
                model[bits].fill(true);
            }
            2 => {
                set.remove(extent);
                model[bits].fill(false);
            }
            3 => {
                std::mem::swap(&mut set, &mut other);
                std::mem::swap(&mut model, &mut second);
            }
            4 => {
                set = set.union(&other);
                model = std::array::from_fn(|i| model[i] || second[i]);
            }
            5 => {
                set = set.intersect(&other);
                model = std::array::from_fn(|i| model[i] && second[i]);
            }
            6 => {
                set = set.subtract(&other);
                model = std::array::from_fn(|i| model[i] && !second[i]);
            }
            7 => {
                set = set.clamp(a);
                model[a as usize..].fill(false);
            }
            8 => {
                let (below, above) = set.split_at(a);
                assert!(below.end() <= a && above.iter().all(|e| e.offset() >= a));
                set = below.union(&above);
            }
            9 => {
                set = set.align_out(granularity).clamp(UNIVERSE);
                model = aligned(&model, granularity, |unit| unit.contains(&true));
            }
            10 => {
                set = set.align_in(granularity);
                // A unit that the universe cuts off is never whole.
                let len = granularity as usize;
                model = aligned(&model, granularity, |unit| unit == vec![true; len]);
            }
            _ => {
                assert_eq!(set.covers(&extent), model[bits].iter().all(|bit| *bit));
                set = set.pieces(granularity).collect();
            }
        }
        assert_same(&set, &model);
    }
    assert_same(&other, &second);
}

const UNIT: Extent = match Extent::from_bounds(0, 1) {
    Some(unit) => unit,
    None => unreachable!(),
};

type Model = [bool; UNIVERSE as usize];

/// Each unit of `granularity` as a whole, by what is said of its bits.
fn aligned(model: &Model, granularity: u64, whole: impl Fn(&[bool]) -> bool) -> Model {
    let mut out = *model;
    for unit in out.chunks_mut(granularity as usize) {
        unit.fill(whole(unit));
    }
    out
}

fn assert_same(set: &ExtentSet, model: &Model) {
    let mut bits = [false; UNIVERSE as usize];
    for extent in set {
        bits[extent.offset() as usize..extent.end() as usize].fill(true);
    }
    assert!(bits == *model, "{set:?}");
    let extents: Vec<Extent> = set.iter().collect();
    assert!(extents.windows(2).all(|pair| pair[0].end() < pair[1].offset()), "{set:?}");
    let count = model.iter().filter(|bit| **bit).count() as u64;
    assert_eq!((set.byte_count(), set.is_empty()), (count, count == 0));
    for (at, bit) in model.iter().enumerate() {
        assert_eq!(set.contains(at as u64), *bit);
    }
}
