//! Tests of listings, on recorded output where the version could be had.

use proptest::prelude::*;

use super::*;

/// From zfs-fuse 0.7.0, `zfs get -rHp -o name,property,value` with [`POINT_PROPERTIES`]. The
/// pool holds two file systems, one a clone of the other's snapshot, which is held.
const FUSE_POINTS: &str = "\
tp\tguid\t17670721387862634675
tp\tcreatetxg\t1
tp\tcreation\t1795380523
tp\tuserrefs\t-
tp/cl\tguid\t9513833984899892305
tp/cl\tcreatetxg\t17
tp/cl\tcreation\t1795380523
tp/cl\tuserrefs\t-
tp/fs\tguid\t16766738158600876676
tp/fs\tcreatetxg\t7
tp/fs\tcreation\t1795380523
tp/fs\tuserrefs\t-
tp/fs@1\tguid\t3646890423996325336
tp/fs@1\tcreatetxg\t13
tp/fs@1\tcreation\t1795380523
tp/fs@1\tuserrefs\t1
";

/// The same pool with [`DATASET_PROPERTIES_V23`].
const FUSE_DATASETS: &str = "\
tp\ttype\tfilesystem
tp\tguid\t17670721387862634675
tp\tvolsize\t-
tp\tvolblocksize\t-
tp\torigin\t-
tp/cl\ttype\tfilesystem
tp/cl\tguid\t9513833984899892305
tp/cl\tvolsize\t-
tp/cl\tvolblocksize\t-
tp/cl\torigin\ttp/fs@1
tp/fs\ttype\tfilesystem
tp/fs\tguid\t16766738158600876676
tp/fs\tvolsize\t-
tp/fs\tvolblocksize\t-
tp/fs\torigin\t-
tp/fs@1\ttype\tsnapshot
tp/fs@1\tguid\t3646890423996325336
tp/fs@1\tvolsize\t-
tp/fs@1\tvolblocksize\t-
tp/fs@1\torigin\t-
";

const POINTS: &str = "\
tank/v 1@auto_2026-11-22_20:00:00 x\t18446744073709551615\t40\t1795380523\t2
tank/v 1@b\t7\t41\t1795380524\t0
tank/v 1#b\t7\t41\t1795380524\t-
";

const DATASETS: &str = "\
tank\tfilesystem\t1\t-\t-\t-\t24576\toff\t-\t-\t-
tank/v 1\tvolume\t2\t1099511627776\t16384\ttank/a@b c\t0\taes-256-gcm\ttank\tavailable\t-
tank/c\tfilesystem\t3\t-\t-\t-\t-\taes-256-ccm\ttank/c\tunavailable\t1-2-3-4
";

#[test]
fn points_are_read_as_they_are_listed() {
    let points = parse_points(POINTS).expect("it is a listing");
    let [first, second, bookmark] = &points[..] else { panic!("{points:?}") };
    assert_eq!(first.name.to_string(), "tank/v 1@auto_2026-11-22_20:00:00 x");
    assert_eq!((first.guid, first.createtxg), (u64::MAX, 40));
    assert_eq!((first.creation, first.user_refs), (1_795_380_523, Some(2)));
    assert!(first.is_held() && !second.is_held() && !bookmark.is_held());
    assert!(second.is_snapshot() && !bookmark.is_snapshot());
    assert_eq!((bookmark.guid, bookmark.createtxg), (second.guid, second.createtxg));
    assert_eq!(bookmark.user_refs, None);
    assert_eq!(parse_points(""), Ok(vec![]));
    // Versions that know no holds may have them all the same.
    let unknown = parse_points("tank@a\t7\t41\t1\t-\n").expect("it is a listing");
    assert!(unknown[0].is_held());
}

#[test]
fn datasets_are_read_as_they_are_listed() {
    let datasets = parse_datasets(DATASETS).expect("it is a listing");
    let [plain, volume, partial] = &datasets[..] else { panic!("{datasets:?}") };
    assert_eq!((plain.kind, plain.key), (DatasetKind::FileSystem, KeyStatus::None));
    assert_eq!((plain.written, plain.volsize, plain.volblocksize), (Some(24576), None, None));
    assert_eq!((&plain.encryption, &plain.encryption_root, &plain.origin), (&None, &None, &None));
    assert_eq!(volume.name.as_str(), "tank/v 1");
    assert_eq!((volume.kind, volume.key), (DatasetKind::Volume, KeyStatus::Available));
    assert_eq!((volume.volsize, volume.volblocksize), (Some(1 << 40), Some(16384)));
    assert_eq!(volume.origin.as_ref().map(ToString::to_string).as_deref(), Some("tank/a@b c"));
    assert_eq!(volume.encryption.as_deref(), Some("aes-256-gcm"));
    assert_eq!(volume.encryption_root.as_ref().map(DatasetName::as_str), Some("tank"));
    assert_eq!(volume.receive_resume_token, None);
    assert_eq!((partial.key, partial.written), (KeyStatus::Unavailable, None));
    assert_eq!(partial.receive_resume_token.as_deref(), Some("1-2-3-4"));
}

#[test]
fn zfs_fuse_is_read_through_get() {
    let points = parse_points_got(FUSE_POINTS).expect("it is a listing");
    let [point] = &points[..] else { panic!("{points:?}") };
    assert_eq!(point.name.to_string(), "tp/fs@1");
    assert_eq!((point.guid, point.createtxg), (3_646_890_423_996_325_336, 13));
    assert_eq!((point.creation, point.user_refs), (1_795_380_523, Some(1)));
    let datasets = parse_datasets_got(FUSE_DATASETS, DATASET_PROPERTIES_V23).expect("likewise");
    let names: Vec<&str> = datasets.iter().map(|dataset| dataset.name.as_str()).collect();
    assert_eq!(names, ["tp", "tp/cl", "tp/fs"]);
    assert_eq!(datasets[1].origin.as_ref(), Some(&point.name));
    assert_eq!((datasets[2].guid, datasets[2].written), (16_766_738_158_600_876_676, None));
    assert_eq!((&datasets[2].encryption, datasets[2].key), (&None, KeyStatus::None));
}

#[test]
fn both_commands_say_the_same() {
    let got = |text: &str, columns: &str| {
        let names = columns.split(',').skip(1);
        let lines = text.lines().flat_map(|line| {
            let mut fields = line.split('\t');
            let name = fields.next().unwrap_or_default();
            names
                .clone()
                .zip(fields)
                .map(move |(property, value)| format!("{name}\t{property}\t{value}\n"))
        });
        lines.collect::<String>()
    };
    assert_eq!(parse_points_got(&got(POINTS, POINT_COLUMNS)), parse_points(POINTS));
    let datasets = parse_datasets_got(&got(DATASETS, DATASET_COLUMNS), DATASET_PROPERTIES);
    assert_eq!(datasets, parse_datasets(DATASETS));
}

#[test]
fn a_line_that_does_not_fit_is_an_error_that_quotes_it() {
    for (text, says) in [
        ("tank@a\t1\t2\t3\t4", "ends within the line \"tank@a\\t1\\t2\\t3\\t4\""),
        ("tank@a\t1\t2\t3\t4\ntank@", "ends within the line \"tank@\""),
        ("tank@a\t1\t2\t3\n", "has 4 columns and not 5: \"tank@a\\t1\\t2\\t3\""),
        ("tank@a\t1\t2\t3\t4\t5\n", "has 6 columns"),
        ("\n", "has 1 columns"),
        ("tank@a\t1\t2\t3\t4\n\n", "has 1 columns"),
        ("tank@a\t15.3E\t2\t3\t4\n", "bad guid: \"tank@a\\t15.3E"),
        ("tank@a\t0\t2\t3\t4\n", "bad guid"),
        ("tank@a\t-\t2\t3\t4\n", "bad guid"),
        ("tank@a\t18446744073709551616\t2\t3\t4\n", "bad guid"),
        ("tank@a\t1\t+2\t3\t4\n", "bad createtxg"),
        ("tank@a\t1\t2\tSun Nov 22 20:48 2026\t4\n", "bad creation"),
        ("tank@a\t1\t2\t3\t\n", "bad userrefs"),
        ("tank/a\t1\t2\t3\t4\n", "bad name: \"tank/a"),
        ("tank@\u{e4}\t1\t2\t3\t4\n", "bad name"),
    ] {
        let error = parse_points(text).expect_err(text).to_string();
        assert!(error.contains(says) && error.contains("zfs list"), "{text:?}: {error}");
    }
    for (bad, from, to) in [
        ("type", "\tvolume\t", "\tsnapshot\t"),
        ("volsize", "1099511627776", "1T"),
        ("volblocksize", "16384", "16K"),
        ("keystatus", "available", "gone"),
        ("written", "24576", "24K"),
    ] {
        let error = parse_datasets(&DATASETS.replacen(from, to, 1)).expect_err(bad).to_string();
        assert!(error.contains(&format!("bad {bad}")), "{error}");
    }
    let absent = parse_datasets(&DATASETS.replace("16384", "-")).expect_err("volumes have one");
    assert!(absent.to_string().contains("bad volblocksize"), "{absent}");
}

#[test]
fn nothing_is_left_out_of_what_get_prints() {
    let parse = |text: &str| parse_points_got(text).map(|points| points.len());
    for line in 0..FUSE_POINTS.lines().count() {
        let without: String = FUSE_POINTS
            .lines()
            .enumerate()
            .filter(|(i, _)| *i != line)
            .map(|(_, line)| format!("{line}\n"))
            .collect();
        let error = parse(&without).expect_err("a property is missing").to_string();
        assert!(error.contains("0 times and not once"), "{error}");
    }
    let twice = format!("{FUSE_POINTS}tp/fs@1\tuserrefs\t1\n");
    let error = parse(&twice).expect_err("a property is there twice").to_string();
    assert_eq!(error, "`zfs get -Hp` printed the userrefs of \"tp/fs@1\" 2 times and not once");
    let other = format!("{FUSE_POINTS}tp/fs@1\tused\t1\n");
    let error = parse(&other).expect_err("it was not asked for").to_string();
    assert!(error.contains("bad used: \"tp/fs@1\\tused\\t1\""), "{error}");
    let bad = FUSE_POINTS.replace("createtxg\t13", "createtxg\t13K");
    let error = parse(&bad).expect_err("it is no number").to_string();
    assert!(error.contains("bad createtxg: \"tp/fs@1\\tcreatetxg\\t13K\""), "{error}");
}

proptest! {
    #[test]
    fn every_listing_is_read_whole_or_not_at_all(
        names in prop::collection::vec("[a-z](/?[a-z]){0,6}[@#][a-zA-Z0-9:. _-]{0,20}x", 0..20),
        numbers: [u64; 3],
        cut: prop::sample::Index,
    ) {
        let [guid, createtxg, creation] = numbers.map(|number| number.max(1));
        let lines = names.iter().map(|name| format!("{name}\t{guid}\t{createtxg}\t{creation}\t-\n"));
        let text: String = lines.collect();
        let points = parse_points(&text).expect("it is a listing");
        let read: Vec<String> = points.iter().map(|point| point.name.to_string()).collect();
        prop_assert_eq!(read, names);
        prop_assert!(points.iter().all(|point| point.guid == guid));
        let begun = &text[..cut.index(text.len() + 1)];
        let whole = begun.is_empty() || begun.ends_with('\n');
        prop_assert_eq!(parse_points(begun).is_ok(), whole);
    }

    #[test]
    fn any_text_never_panics(text in "([a-z@#/0-9-]|\\t|\\n|\\PC){0,200}") {
        let points = parse_points(&text);
        let _ = (parse_datasets(&text), parse_points_got(&text));
        if let Ok(points) = points {
            prop_assert_eq!(points.len(), text.lines().count());
        }
    }
}
