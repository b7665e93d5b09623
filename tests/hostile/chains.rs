//! Layers on layers that are not theirs.

use std::fs;
use std::path::{Path, PathBuf};

use cowdisk::format::{LayerId, Parent, PathHints, Sealed, Superblock, TreeRoot};
use cowdisk::units::PBlock;

use crate::case::{Case, Check, CheckAll, Info, InfoChain, InfoFiles, Serve, Snapshot, Write};
use crate::image::{AREA, BLOCK, make, overwrite, patch_superblocks, superblock};

fn on(id: LayerId, file: &str, root_crc: Option<u32>) -> Parent {
    let hints = PathHints { relative: file.into(), absolute: String::new() };
    Parent::Layer { layer: id, root_crc, hints }
}

fn seal(path: &Path, parent: &Parent) {
    patch_superblocks(path, |sb| {
        sb.parent = parent.clone();
        sb.sealed = Some(Sealed { name: "x".into(), time_ns: 0 });
        sb.areas.clear();
    });
}

/// The image `vm.cow` on the sealed layer `b.cow`, both as they should be; gives their identities.
fn two(dir: &Path) -> [(PathBuf, LayerId); 2] {
    let (a, b) = (make(dir, "vm.cow"), make(dir, "b.cow"));
    let ids = [superblock(&a).layer, superblock(&b).layer];
    seal(&b, &Parent::None);
    patch_superblocks(&a, |sb| sb.parent = on(ids[1], "b.cow", Some(0)));
    [(a, ids[0]), (b, ids[1])]
}

/// The image cannot be used because of what it stands on; its own file is fine.
fn refused(name: &str, says: &[&str], change: fn([(PathBuf, LayerId); 2])) -> Case {
    let case = Case::new(format!("chain: {name}"), move |dir| change(two(dir)));
    let case = case.all(&[1], says).on(&[CheckAll], &[1, 2], says);
    case.on(&[Info, Check], &[0], &[])
}

fn edit(path: &Path, change: fn(&mut Superblock)) {
    patch_superblocks(path, change);
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("chain: as it should be", |dir| drop(two(dir))),
        refused("a circle of two", &["circle"], |[a, b]| seal(&b.0, &on(a.1, "vm.cow", Some(0)))),
        refused("a circle of two, both heads", &["b.cow"], |[a, b]| {
            edit(&b.0, |sb| {
                sb.sealed = None;
                sb.areas = vec![cowdisk::format::Area { first: PBlock(2), blocks: 64 }];
            });
            patch_superblocks(&b.0, |sb| sb.parent = on(a.1, "vm.cow", None));
        }),
        refused("a parent that is its own", &["circle"], |[_, b]| seal(&b.0, &on(b.1, "b.cow", Some(0)))),
        refused("a head that is its own parent", &["circle"], |[a, _]| {
            patch_superblocks(&a.0, |sb| sb.parent = on(a.1, "vm.cow", Some(0)));
        }),
        refused("a head that is its own unsealed parent", &["circle"], |[a, _]| {
            patch_superblocks(&a.0, |sb| sb.parent = on(a.1, "vm.cow", None));
        }),
        refused("a layer of another identity", &["b.cow", "not 09090909"], |[a, _]| {
            patch_superblocks(&a.0, |sb| sb.parent = on(LayerId([9; 16]), "b.cow", Some(0)));
        }),
        refused("a layer of another root", &["b.cow", "content"], |[a, b]| {
            patch_superblocks(&a.0, |sb| sb.parent = on(b.1, "b.cow", Some(1)));
        }),
        refused("a layer that is not sealed", &["b.cow", "not sealed"], |[_, b]| {
            edit(&b.0, |sb| {
                sb.sealed = None;
                sb.areas = vec![cowdisk::format::Area { first: PBlock(2), blocks: 64 }];
            });
        })
        .on(&[InfoChain, InfoFiles], &[0], &[])
        .on(&[CheckAll], &[2], &["parent_changed"]),
        refused("a layer of a later version", &["b.cow", "incompatible features 9"], |[_, b]| {
            edit(&b.0, |sb| sb.incompat = 1 << 9);
        }),
        refused("a layer without superblocks", &["b.cow"], |[_, b]| {
            overwrite(&b.0, 0, &[0; 2 * BLOCK as usize]);
        }),
        refused("a layer that is cut off", &["b.cow"], |[_, b]| {
            fs::File::options().write(true).open(b.0).unwrap().set_len(5000).unwrap();
        }),
        refused("a layer that is gone", &["cannot be found"], |[_, b]| fs::remove_file(b.0).unwrap()),
        refused("a layer of which the root is missing", &["b.cow"], |[a, b]| {
            patch_superblocks(&b.0, |sb| {
                sb.high_water = PBlock(AREA + 9);
                sb.root = TreeRoot { pblock: PBlock(AREA + 1), crc: 5, height: 3 };
            });
            patch_superblocks(&a.0, |sb| sb.parent = on(b.1, "b.cow", Some(5)));
        })
        .on(&[InfoChain, InfoFiles, Serve, Write, Snapshot], &[0], &[]),
        Case::new("chain: a parent of another size", |dir| {
            let [_, b] = two(dir);
            edit(&b.0, |sb| sb.virtual_size = 1 << 40);
        }),
        Case::new("chain: a parent of one sector", |dir| {
            let [_, b] = two(dir);
            edit(&b.0, |sb| sb.virtual_size = 512);
        }),
    ]
}
