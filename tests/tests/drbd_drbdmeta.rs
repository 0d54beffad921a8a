//! Random metadata through the real `drbdmeta apply-al`: it must find what we find, bit for bit.
//!
//! It works on plain files with a minor number that nothing uses, and needs no kernel module.

mod drbd_support;

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use drbd_support::{Dump, mapped, read};
use driftline_drbd::{
    INDEXED_LEN, Layout,
    testing::{Log, PeerSpec, SparseDisk, Spec},
};
use driftline_extent::Volume;
use proptest::prelude::*;

fn drbdmeta(image: &Path, spec: &Spec, command: &str) -> String {
    let index = match spec.layout {
        Layout::Internal => "internal".to_owned(),
        Layout::External => "flex-external".to_owned(),
        Layout::Indexed(n) => n.to_string(),
    };
    let output = Command::new("drbdmeta")
        .args(["--force", "77", if spec.v09 { "v09" } else { "v08" }])
        .arg(image)
        .args([&index, command])
        .stdin(Stdio::null())
        .output()
        .expect("drbdmeta must be there: install drbd-utils");
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}{errors}");
    text
}

fn save(disk: &SparseDisk, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(disk.size()).unwrap();
    disk.pages().for_each(|(offset, page)| file.write_all_at(page, offset).unwrap());
}

/// Live Primaries of all layouts, with logs of all ages, torn ones among them.
fn specs() -> impl Strategy<Value = Spec> {
    let shapes = prop::sample::select(vec![(1, 8), (2, 4), (2, 16), (4, 16), (1, 11)]);
    let layouts = prop::sample::select(vec![
        Layout::Internal,
        Layout::External,
        Layout::Indexed(0),
        Layout::Indexed(2),
    ]);
    let update = (0_u16..1237, 0.0_f64..1.0);
    let writes = prop::collection::vec(prop::collection::vec(update, 1..30), 0..80);
    let bits = prop::collection::vec(prop::collection::vec(0.0_f64..1.0, 0..200), 1..10);
    let torn = prop::option::of(0_usize..4096);
    (any::<bool>(), layouts, shapes, writes, bits, torn, 8..=2_000_000_u64).prop_map(
        |(v09, layout, shape, writes, bits, torn, sectors)| {
            let mut spec = Spec::primary(v09, 10, 20);
            spec.layout = layout;
            spec.sectors = sectors;
            spec.device_len = match layout {
                // Data, the bitmaps, the log and the superblock.
                Layout::Internal => (sectors * 512).next_multiple_of(4096) + (2 << 20),
                Layout::External => 4 << 20,
                Layout::Indexed(n) => (u64::from(n) + 1) * INDEXED_LEN,
            };
            let bits = if v09 { &bits[..] } else { &bits[..1] };
            let count = (sectors * 512).div_ceil(4096) as f64;
            let marked = bits.iter().map(|b| b.iter().map(|at| (at * count) as u64).collect());
            spec.bits = marked.collect();
            if v09 {
                let peer = |slot: usize| PeerSpec {
                    node: slot + 1,
                    uuid: 10,
                    flags: 0,
                    slot: slot as i32,
                };
                spec.peers = (0..bits.len()).map(peer).collect();
            }
            spec.log = Log::new(shape, 1237);
            let regions = (sectors * 512).div_ceil(4 << 20) as f64;
            for updates in &writes {
                let mut seen = Vec::new();
                for (slot, at) in updates {
                    seen.push((*slot, (at * regions) as u32));
                }
                spec.log.write(&seen);
            }
            if let Some(at) = torn {
                let block = spec.log.next_block();
                spec.log.ring[block][at] ^= 1;
            }
            spec
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_apply_the_same_log(spec in specs()) {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let disk = spec.to_disk();
        save(&disk, &image);
        let metadata = read(&disk, spec.layout);
        prop_assert_eq!(metadata.activity_log.damage, None);
        drbdmeta(&image, &spec, "apply-al");
        let after = Dump::parse(&drbdmeta(&image, &spec, "dump-md"));
        after.assert_same("after", &metadata);
        for slot in 0..spec.bits.len() {
            let found = mapped(&metadata, &disk, slot);
            prop_assert!(found == after.bitmaps[slot], "bitmap {} of {:?}", slot, spec.layout);
        }
    }
}
