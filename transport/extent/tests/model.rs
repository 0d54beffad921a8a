//! The extent algebra held against the most naive model there is: one bool for each byte.

use driftline_extent::{ChangeMap, Extent, ExtentSet, Standing};
use proptest::prelude::*;

/// Small enough that random extents overlap, touch and nest all the time.
const UNIVERSE: u64 = 160;

type Bits = Vec<bool>;

fn extent() -> impl Strategy<Value = Extent> {
    (0..UNIVERSE, 1..24_u64).prop_map(|(offset, len)| {
        Extent::from_bounds(offset, (offset + len).min(UNIVERSE)).unwrap()
    })
}

fn set() -> impl Strategy<Value = ExtentSet> {
    prop::collection::vec((extent(), any::<bool>()), 0..24).prop_map(|ops| {
        let mut set = ExtentSet::new();
        for (extent, add) in ops {
            if add { set.insert(extent) } else { set.remove(extent) }
        }
        set
    })
}

fn bits(set: &ExtentSet) -> Bits {
    let mut bits = vec![false; UNIVERSE as usize];
    for extent in set {
        bits[extent.offset() as usize..extent.end() as usize].fill(true);
    }
    bits
}

fn zip(a: &ExtentSet, b: &ExtentSet, op: impl Fn(bool, bool) -> bool) -> Bits {
    bits(a).into_iter().zip(bits(b)).map(|(a, b)| op(a, b)).collect()
}

/// Sorted, disjoint, and coalesced: there is one way to write each set.
fn assert_canonical(set: &ExtentSet) {
    let extents: Vec<_> = set.iter().collect();
    for pair in extents.windows(2) {
        assert!(pair[0].end() < pair[1].offset(), "{pair:?} should be one extent");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn insert_and_remove(ops in prop::collection::vec((extent(), any::<bool>()), 0..40)) {
        let (mut set, mut model) = (ExtentSet::new(), vec![false; UNIVERSE as usize]);
        for (extent, add) in ops {
            if add { set.insert(extent) } else { set.remove(extent) }
            model[extent.offset() as usize..extent.end() as usize].fill(add);
            assert_canonical(&set);
            prop_assert_eq!(bits(&set), model.clone());
        }
        prop_assert_eq!(set.byte_count(), model.iter().filter(|b| **b).count() as u64);
        prop_assert_eq!(set.is_empty(), !model.contains(&true));
        prop_assert_eq!(set.end(), model.iter().rposition(|b| *b).map_or(0, |i| i as u64 + 1));
    }

    #[test]
    fn collecting_unsorted_is_inserting(extents in prop::collection::vec(extent(), 0..40)) {
        let mut inserted = ExtentSet::new();
        inserted.extend(extents.iter().copied());
        let collected: ExtentSet = extents.into_iter().collect();
        assert_canonical(&collected);
        prop_assert_eq!(inserted, collected);
    }

    #[test]
    fn algebra(a in set(), b in set()) {
        for (set, model) in [
            (a.union(&b), zip(&a, &b, |a, b| a || b)),
            (a.intersect(&b), zip(&a, &b, |a, b| a && b)),
            (a.subtract(&b), zip(&a, &b, |a, b| a && !b)),
        ] {
            assert_canonical(&set);
            prop_assert_eq!(bits(&set), model);
        }
    }

    #[test]
    fn membership(a in set(), e in extent()) {
        let model = bits(&a);
        prop_assert!((0..UNIVERSE).all(|at| a.contains(at) == model[at as usize]));
        let all = model[e.offset() as usize..e.end() as usize].iter().all(|b| *b);
        prop_assert_eq!(a.covers(&e), all);
    }

    #[test]
    fn alignment(a in set(), granularity in 1..40_u64) {
        let (out, inner) = (a.align_out(granularity), a.align_in(granularity));
        assert_canonical(&out);
        assert_canonical(&inner);
        let model = bits(&a);
        for unit in 0..UNIVERSE / granularity {
            let range = (unit * granularity) as usize..((unit + 1) * granularity) as usize;
            let any = model[range.clone()].iter().any(|b| *b);
            prop_assert!(range.clone().all(|at| out.contains(at as u64) == any));
            // Coalesced neighbours may cover a unit together; that is still inside the set.
            let all = model[range.clone()].iter().all(|b| *b);
            prop_assert!(range.clone().all(|at| inner.contains(at as u64) == all));
        }
    }

    #[test]
    fn splitting_and_clamping(a in set(), at in 0..UNIVERSE + 10) {
        let (below, above) = a.split_at(at);
        assert_canonical(&below);
        assert_canonical(&above);
        prop_assert_eq!(a.clamp(at), below.clone());
        prop_assert!(below.end() <= at && above.iter().all(|e| e.offset() >= at));
        prop_assert_eq!(a.first_from(at), above.iter().next());
        prop_assert_eq!(below.union(&above), a);
    }

    #[test]
    fn pieces_tile_the_set(a in set(), granularity in 1..40_u64) {
        let pieces: Vec<Extent> = a.pieces(granularity).collect();
        for piece in &pieces {
            prop_assert_eq!(piece.offset() / granularity, (piece.end() - 1) / granularity);
        }
        prop_assert!(pieces.windows(2).all(|p| p[0].end() <= p[1].offset()));
        prop_assert_eq!(pieces.iter().map(Extent::len).sum::<u64>(), a.byte_count());
        prop_assert_eq!(pieces.into_iter().collect::<ExtentSet>(), a);
    }

    /// A coarser map may claim more changed and less zero, never the reverse.
    #[test]
    fn coarsening_is_safe(a in set(), z in set(), extents_max in 1..12_usize) {
        let zero = z.subtract(&a);
        let mut map = ChangeMap {
            base: None, tip: None, size: Some(UNIVERSE), granularity: 1,
            changed: a, zero, standing: Standing::Proven,
        };
        let before = map.clone();
        map.coarsen(extents_max);
        prop_assert!(map.changed.extent_count() + map.zero.extent_count() <= extents_max);
        prop_assert!(before.changed.subtract(&map.changed).is_empty(), "a change was dropped");
        prop_assert!(map.zero.subtract(&before.zero).is_empty(), "a zero was made up");
        let both = before.changed.union(&before.zero);
        prop_assert!(both.subtract(&map.changed.union(&map.zero)).is_empty());
        prop_assert!(map.changed.intersect(&map.zero).is_empty());
        prop_assert!(map.changed.end() <= UNIVERSE);
    }
}
