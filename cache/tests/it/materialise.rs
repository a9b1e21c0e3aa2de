//! Directories made from the store: whole, read-only, made once.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use weighlock_cache::{MaterialiseOptions, StoreError};
use weighlock_protocol::LayerId;

use crate::support::{add, data, layer_path, open, plan, tree};

#[test]
fn a_directory_appears_whole_and_equal() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let files = [("config.json", b"{}".to_vec()), ("a/b/model.bin", data(1, 300_000)), ("empty", Vec::new())];
    let manifest = add(&store, &plan(&dir.path().join("source"), &files));
    let target = dir.path().join("deep/er/target");
    let report = store.materialise(&manifest, &target, &MaterialiseOptions::default()).expect("made");
    assert_eq!((report.files, report.bytes, report.up_to_date), (3, 300_002, false));
    assert_eq!(report.reflinked + report.copied, 3);
    for (path, bytes) in &files {
        let at = target.join(path);
        assert_eq!(&std::fs::read(&at).expect("read"), bytes);
        assert_eq!(std::fs::metadata(&at).expect("stat").permissions().mode() & 0o777, 0o444);
    }
    assert_eq!(tree(&target).len(), 4, "the files and the marker");
    assert_eq!(std::fs::read_dir(dir.path().join("deep/er")).expect("list").count(), 1);

    // The same again: nothing to do. Touched: refused, unless forced.
    let inode = std::fs::metadata(&target).expect("stat").ino();
    let again = store.materialise(&manifest, &target, &MaterialiseOptions::default()).expect("no-op");
    assert!(again.up_to_date);
    assert_eq!(std::fs::metadata(&target).expect("stat").ino(), inode);
    std::fs::remove_file(target.join("config.json")).expect("remove");
    let refused = store.materialise(&manifest, &target, &MaterialiseOptions::default());
    assert!(matches!(refused, Err(StoreError::TargetExists { .. })));
    let force = MaterialiseOptions { force: true, ..MaterialiseOptions::default() };
    store.materialise(&manifest, &target, &force).expect("forced");
    assert!(target.join("config.json").exists());
    assert_eq!(std::fs::read_dir(dir.path().join("deep/er")).expect("list").count(), 1);
}

#[test]
fn foreign_directories_and_missing_layers_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(1, 100_000);
    let manifest =
        add(&store, &plan(&dir.path().join("source"), &[("a", bytes.clone()), ("b", b"b".to_vec())]));
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).expect("dir");
    store.materialise(&manifest, &foreign, &MaterialiseOptions::default()).expect("empty is fine");
    std::fs::remove_dir_all(&foreign).expect("remove");
    std::fs::create_dir(&foreign).expect("dir");
    std::fs::write(foreign.join("thesis.tex"), b"years").expect("write");
    let refused = store.materialise(&manifest, &foreign, &MaterialiseOptions::default());
    assert!(matches!(refused, Err(StoreError::TargetExists { .. })));
    assert_eq!(tree(&foreign), ["thesis.tex"]);

    store.remove_layer(&LayerId::of(b"b")).expect("remove");
    let target = dir.path().join("target");
    let missing = store.materialise(&manifest, &target, &MaterialiseOptions::default());
    assert!(matches!(missing, Err(StoreError::NotHeld(_))));
    assert!(!target.exists());
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn hard_links_share_the_sealed_file() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let bytes = data(1, 100_000);
    let manifest = add(&store, &plan(&dir.path().join("source"), &[("a", bytes.clone())]));
    let options = MaterialiseOptions { hard_link: true, ..MaterialiseOptions::default() };
    let target = dir.path().join("target");
    let report = store.materialise(&manifest, &target, &options).expect("made");
    assert_eq!(report.hard_linked, 1);
    let sealed = layer_path(store.dir(), &LayerId::of(&bytes));
    let inode = |path: &std::path::Path| std::fs::metadata(path).expect("stat").ino();
    assert_eq!(inode(&target.join("a")), inode(&sealed));
    store.open_sealed(&LayerId::of(&bytes)).expect("as recorded");
}

#[test]
fn a_view_is_made_once_and_again_when_it_was_touched() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let manifest = add(&store, &plan(&dir.path().join("source"), &[("x/a", data(1, 100_000))]));
    let view = store.view(&manifest).expect("view");
    assert_eq!(view, store.dir().join("views").join(manifest.digest().hex()));
    let inode = std::fs::metadata(&view).expect("stat").ino();
    assert_eq!(store.view(&manifest).expect("view"), view);
    assert_eq!(std::fs::metadata(&view).expect("stat").ino(), inode);
    std::fs::set_permissions(view.join("x"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    std::fs::remove_file(view.join("x/a")).expect("remove");
    store.view(&manifest).expect("view");
    assert_eq!(std::fs::read(view.join("x/a")).expect("read"), data(1, 100_000));
    // Half-made views of a process that was killed go at the next open.
    let half = store.dir().join("views/.half");
    std::fs::create_dir(&half).expect("dir");
    drop(store);
    let store = open(&dir.path().join("store"));
    assert!(!half.exists() && view.exists());
    drop(store);
}

#[test]
fn a_view_goes_at_once_for_those_who_look_and_stays_for_those_who_read() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let manifest = add(&store, &plan(&dir.path().join("source"), &[("x/a", data(1, 100_000))]));
    let digest = manifest.digest();
    assert!(!store.remove_view(&digest, || true).expect("nothing to remove"));
    let view = store.view(&manifest).expect("view");
    assert_eq!(store.views().expect("listed"), [digest]);
    let mut open_file = std::fs::File::open(view.join("x/a")).expect("opens");
    assert!(!store.remove_view(&digest, || false).expect("somebody changed their mind") && view.exists());
    assert!(store.remove_view(&digest, || true).expect("removed"));
    assert_eq!(store.views().expect("listed"), []);
    assert!(
        std::fs::read_dir(store.dir().join("views")).expect("dir").next().is_none(),
        "nothing is left of it"
    );
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut open_file, &mut read).expect("still there for who has it open");
    assert_eq!(read, data(1, 100_000));
    assert_eq!(store.view(&manifest).expect("made again"), view);
    assert_eq!(std::fs::read(view.join("x/a")).expect("read"), data(1, 100_000));
}

#[test]
fn views_that_are_made_and_removed_at_once_are_whole_or_not_there() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let manifest =
        add(&store, &plan(&dir.path().join("source"), &[("a", data(1, 20_000)), ("b", data(2, 9))]));
    let digest = manifest.digest();
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            for _ in 0..40 {
                let view = store.view(&manifest).expect("made");
                // It may be gone by now; what there is of it is the whole.
                if let Ok(read) = std::fs::read(view.join("a")) {
                    assert_eq!(read, data(1, 20_000));
                }
            }
        });
        while !maker.is_finished() {
            store.remove_view(&digest, || true).expect("removed or not there");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    });
    let view = store.view(&manifest).expect("made");
    assert_eq!(std::fs::read(view.join("b")).expect("read"), data(2, 9));
}

#[test]
fn what_is_let_go_of_takes_its_view_along_also_one_that_is_just_being_made() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("store"));
    let files = |own: u64| [("base", data(1, 60_000)), ("own", data(own, 9))];
    let kept = add(&store, &plan(&dir.path().join("kept"), &files(2)));
    let view = store.view(&kept).expect("made");
    for _ in 0..20 {
        let going = add(&store, &plan(&dir.path().join("going"), &files(3)));
        std::thread::scope(|scope| {
            // It is made, or it finds that its layers are gone.
            scope.spawn(|| store.view(&going).map(drop));
            store.remove_artifact(&going.digest()).expect("removed");
        });
        assert_eq!(store.views().expect("listed"), [kept.digest()]);
    }
    assert_eq!(std::fs::read(view.join("base")).expect("the other one stays"), data(1, 60_000));
}
