//! Links, other names, other owners: what stands where a replica or its books should be.

mod common;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
};

use common::*;
use driftline_extent::{Explained, Finish, Generation, PlanKind, Reason, Target};
use driftline_target::{Index, Listed, Options, Problem, open, open_in_place, state_dir_of};

/// The disk that a link leads to is not mounted: that is told, the link stays, and nothing is made
/// on this disk, however often it is tried.
#[test]
fn a_dangling_link_is_named_and_left_alone() {
    let place = place();
    let gone = place._dir.path().join("disk/vm1.img");
    symlink(&gone, &place.path).unwrap();
    for _ in 0..2 {
        let error = place.try_open().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("symbolic link") && text.contains("mount"), "{text}");
        assert!(text.contains(gone.to_str().unwrap()), "{text}");
        let error = open_in_place(&place.path, true).unwrap_err();
        assert!(matches!(error.problem, Problem::Dangling { .. }), "{error}");
        assert_eq!(fs::read_link(&place.path).unwrap(), gone);
        assert_eq!(fs::read_dir(place._dir.path()).unwrap().count(), 1);
    }
    // Mounted, it is a place like any other.
    fs::create_dir(gone.parent().unwrap()).unwrap();
    fs::write(&gone, []).unwrap();
    let mut replica = place.open();
    deliver(&mut replica, plan(PlanKind::Full, None, 1), &whole(&[7; 100]), 100).unwrap();
    assert_eq!((fs::read(&gone).unwrap(), place.path.is_symlink()), (vec![7; 100], true));
    assert!(state_dir_of(&gone).join("state").exists());
}

/// What appeared after the replica was opened is not taken away with what was made for nothing.
#[test]
fn only_what_was_made_here_is_taken_away() {
    let place = place();
    let replica = place.open();
    fs::remove_file(&place.path).unwrap();
    fs::write(&place.path, "theirs").unwrap();
    drop(replica);
    assert_eq!(fs::read_to_string(&place.path).unwrap(), "theirs");
    assert!(!state_dir_of(&place.path).exists());
}

/// Whoever moves the file or its books in the middle of an increment is told so by that run.
#[test]
fn what_is_moved_while_it_is_written_is_not_called_committed() {
    for moved in ["volume", "state", "ids", "journal", "folder"] {
        for replaced in ["by nothing", "by a copy", "by a link to it"] {
            // The folder of the books may be a link.
            if moved == "folder" && replaced == "by a link to it" {
                continue;
            }
            let place = Place::holding(&pattern(3, 3 * CHUNK));
            let path = match moved {
                "volume" => place.path.clone(),
                "folder" => state_dir_of(&place.path),
                book => place.book(book),
            };
            let mut replica = place.open();
            let plan = plan(PlanKind::Incremental, Some(1), 2);
            replica.begin(&offer(plan.clone())).unwrap();
            let changes = whole(&pattern(5, CHUNK));
            let (items, _) = items(&key(&replica), plan.kind, &changes, 3 * CHUNK as u64, 0);
            for item in items {
                put(&mut replica, &item).unwrap();
            }
            let aside = path.with_extension("aside");
            fs::rename(&path, &aside).unwrap();
            match replaced {
                "by a copy" if moved == "folder" => fs::create_dir(&path).unwrap(),
                "by a copy" => drop(fs::copy(&aside, &path).unwrap()),
                "by a link to it" => symlink(&aside, &path).unwrap(),
                _ => {}
            }
            let size = Some(3 * CHUNK as u64);
            let finish = Finish { tip: Generation::zfs(2), size, root: None };
            let error = replica.commit(&finish).unwrap_err();
            let what = format!("{moved}, replaced {replaced}: {error}");
            assert!(matches!(error.problem, Problem::Replaced { .. }), "{what}");
            assert_eq!(error.reason(), Reason::TargetModified, "{what}");
            drop(replica);
            // Put back, it is at the base, and the run is repeated.
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
            fs::rename(&aside, &path).unwrap();
            let mut replica = place.open();
            assert_eq!(replica.state().generation, Some(Generation::zfs(1)), "{what}");
            deliver(&mut replica, plan, &changes, 3 * CHUNK as u64).unwrap();
            assert!(replica.verify(&mut |_| {}).unwrap().is_clean(), "{what}");
        }
    }
}

/// Also a first copy, which writes to the file at once.
#[test]
fn a_first_copy_to_a_file_that_was_removed_is_not_called_committed() {
    let place = place();
    let mut replica = place.open();
    let volume = pattern(3, CHUNK);
    let plan = plan(PlanKind::Full, None, 1);
    replica.begin(&offer(plan.clone())).unwrap();
    let size = CHUNK as u64;
    let (items, root) = items(&key(&replica), plan.kind, &whole(&volume), size, 0);
    put(&mut replica, &items[0]).unwrap();
    fs::remove_file(&place.path).unwrap();
    let finish = Finish { tip: Generation::zfs(1), size: Some(size), root };
    let error = replica.commit(&finish).unwrap_err();
    assert!(matches!(error.problem, Problem::Replaced { .. }), "{error}");
}

/// The folder of the books may be a link that this user made, and none of anybody else's.
#[test]
fn a_link_of_another_user_leads_to_no_books() {
    let place = Place::holding(&pattern(3, CHUNK));
    let (dir, other_replicas) = (state_dir_of(&place.path), place._dir.path().join("ssd"));
    fs::rename(&dir, &other_replicas).unwrap();
    symlink(&other_replicas, &dir).unwrap();
    assert_eq!(place.open().state().generation, Some(Generation::zfs(1)));
    lchown(&dir, Some(65534), None).unwrap();
    let error = place.try_open().unwrap_err();
    assert!(matches!(error.problem, Problem::NotOurs { owner: 65534, .. }), "{error}");
}

#[test]
fn books_are_never_followed_through_a_link() {
    for book in ["lock", "state", "journal", "ids", "overlay", "repair"] {
        for exists in [false, true] {
            let place = Place::holding(&pattern(3, CHUNK));
            let victim = place._dir.path().join("victim");
            if exists {
                fs::write(&victim, "theirs").unwrap();
            }
            fs::rename(place.book(book), place._dir.path().join("aside")).unwrap();
            symlink(&victim, place.book(book)).unwrap();
            let error = place.try_open().unwrap_err();
            assert!(matches!(error.problem, Problem::Linked { .. }), "{book}: {error}");
            assert_eq!(fs::read(&victim).ok(), exists.then(|| b"theirs".to_vec()), "{book}");
        }
    }
}

/// A second name of somebody else's file, and what others could read.
#[test]
fn books_are_the_owners_alone() {
    let place = Place::holding(&pattern(3, CHUNK));
    fs::set_permissions(place.book("state"), fs::Permissions::from_mode(0o644)).unwrap();
    drop(place.open());
    assert_eq!(place.book("state").metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn an_index_is_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mode = || path.metadata().unwrap().mode() & 0o777;
    drop(Index::open(&path, &[]).unwrap());
    assert_eq!(mode(), 0o600);
    // One that an older version made.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(Index::open(&path, &[]).unwrap());
    assert_eq!(mode(), 0o600);
    let none: [Listed; 0] = [];
    drop(Index::rebuild(&path, &none).unwrap());
    assert_eq!(mode(), 0o600);
}

#[test]
fn a_restore_does_not_overwrite_a_replica_by_another_name() {
    let place = Place::holding(&pattern(3, CHUNK));
    let before = place.everything();
    let beside = place._dir.path().join("beside.img");
    fs::hard_link(&place.path, &beside).unwrap();
    let error = open_in_place(&beside, true).unwrap_err();
    let is_replica = matches!(error.problem, Problem::IsReplica { .. });
    assert!(is_replica && error.to_string().contains("replica.img.driftline"), "{error}");
    // Where its other name cannot be found, that there is one is enough.
    fs::create_dir(place._dir.path().join("far")).unwrap();
    let far = place._dir.path().join("far/vm.img");
    fs::hard_link(&place.path, &far).unwrap();
    let error = open_in_place(&far, true).unwrap_err();
    assert!(matches!(error.problem, Problem::HardLinked { names: 3 }), "{error}");
    assert_eq!(error.reason(), Reason::TargetForeign);
    assert!(place.everything() == before);
    // By its own name, and by a link, as ever.
    let link = place._dir.path().join("link.img");
    symlink(&place.path, &link).unwrap();
    for path in [&place.path, &link] {
        let error = open_in_place(path, true).unwrap_err();
        assert!(matches!(error.problem, Problem::IsReplica { .. }), "{error}");
    }
    drop(open(&place.path, &Options::default()).unwrap());
}
