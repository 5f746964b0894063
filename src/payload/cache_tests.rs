use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> PathBuf {
        self.0.path().join("bivisor")
    }
    fn cache(&self) -> Cache {
        Cache::open(&self.path(), 1 << 20).unwrap()
    }
    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn content((file, len): (File, u64)) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_was_kept_is_found_by_its_key_alone() {
    let place = Place::new();
    for bytes in [&b""[..], b"unpacked", &[7; 3 * PAGE as usize]] {
        let key = Key::of(&[b"packed", bytes].concat());
        assert!(place.cache().find(key).is_none());
        place.cache().keep(key, bytes).unwrap();
        assert_eq!(content(place.cache().find(key).unwrap()), bytes);
        assert!(place.cache().find(Key { len: key.len + 1, ..key }).is_none());
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&place.path()), 0o700);
    assert!(place.files().iter().all(|file| mode(file) == 0o600));
}

#[test]
fn the_key_of_a_part_of_a_file_is_that_of_its_bytes() {
    let bytes: Vec<u8> = (0..3 * CHUNK + 5).map(|n| (n / 7) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let payloads = [Payload::File(file, bytes.len() as u64), Payload::Memory(bytes.clone())];
    for (at, len) in [(0, bytes.len()), (3, 2 * CHUNK), (CHUNK, 1), (7, 0)] {
        for payload in &payloads {
            let key = Key::at(payload, at as u64, len as u64).unwrap();
            assert_eq!(key, Key::of(&bytes[at..at + len]), "{len} bytes at {at}");
        }
    }
    assert!(Key::at(&payloads[0], 6, bytes.len() as u64).is_err(), "it ends before");
}

#[test]
fn the_last_page_is_filled_with_zeros() {
    let place = Place::new();
    let file = place.cache().keep(Key::of(b"packed"), &[0xff; 100]).unwrap();
    let mut rest = vec![1; PAGE as usize - 100];
    file.read_exact_at(&mut rest, 100).unwrap();
    assert!(rest.iter().all(|&byte| byte == 0));
}

#[test]
fn a_damaged_file_is_not_believed_and_can_be_replaced() {
    let key = Key::of(b"packed");
    let damages: [fn(&mut Vec<u8>); 6] = [
        |bytes| bytes[3] ^= 1,
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.truncate(10),
        |bytes| bytes.clear(),
        |bytes| *bytes.iter_mut().rev().nth(TRAILER - 33).unwrap() ^= 1,
        |bytes| bytes.extend([0; TRAILER]),
    ];
    for damage in damages {
        let place = Place::new();
        place.cache().keep(key, b"unpacked").unwrap();
        let [file] = &place.files()[..] else { panic!("one file is there") };
        let mut bytes = fs::read(file).unwrap();
        damage(&mut bytes);
        fs::write(file, bytes).unwrap();
        assert!(place.cache().find(key).is_none());
        place.cache().keep(key, b"unpacked").unwrap();
        assert_eq!(content(place.cache().find(key).unwrap()), b"unpacked");
    }
}

#[test]
fn what_was_checked_since_the_host_booted_is_not_hashed_again() {
    let key = Key::of(b"packed");
    let place = Place::new();
    place.cache().keep(key, b"unpacked").unwrap();
    let [path] = &place.files()[..] else { panic!("one file is there") };
    let file = File::options().write(true).open(path).unwrap();
    // As no write leaves it: with the time of the last change from before.
    let change = |bytes: &[u8], at| {
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.set_modified(before).unwrap();
    };
    change(b"UN", 0);
    assert_eq!(content(place.cache().find(key).unwrap()), b"UNpacked");
    let boot_at = PAGE + CHECKED as u64;
    change(&[0; 16], boot_at);
    assert!(place.cache().find(key).is_none(), "another boot");
    change(b"un", 0);
    assert_eq!(content(place.cache().find(key).unwrap()), b"unpacked");
    let mut checked = [0; 16];
    File::open(path).unwrap().read_exact_at(&mut checked, boot_at).unwrap();
    assert_eq!(Some(u128::from_le_bytes(checked)), boot(), "it was hashed, and says so");
    file.write_all_at(b"UN", 0).unwrap();
    assert!(place.cache().find(key).is_none(), "it was written to");
}

#[test]
fn hostile_52_links_and_what_others_may_write_are_left_alone() {
    let key = Key::of(b"packed");
    let place = Place::new();
    let elsewhere = place.0.path().join("elsewhere");
    place.cache().keep(key, b"unpacked").unwrap();
    let [file] = &place.files()[..] else { panic!("one file is there") };
    fs::rename(file, &elsewhere).unwrap();
    symlink(&elsewhere, file).unwrap();
    let before = fs::read(&elsewhere).unwrap();
    assert!(place.cache().find(key).is_none(), "a link is not followed");
    place.cache().keep(key, b"replaced").unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), before);
    assert_eq!(content(place.cache().find(key).unwrap()), b"replaced");
    fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(place.cache().find(key).is_none(), "others may have written it");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Cache::open(&place.path(), 1 << 20).is_none(), "others may write the folder");
    let link = place.0.path().join("link");
    symlink(place.path(), &link).unwrap();
    assert!(Cache::open(&link, 1 << 20).is_none(), "the folder is a link");
    assert!(Cache::open(&elsewhere, 1 << 20).is_none(), "the folder is a file");
    assert!(Cache::open(Path::new("/proc/none/bivisor"), 1 << 20).is_none());
}

#[test]
fn what_was_used_last_stays_when_room_is_needed() {
    let place = Place::new();
    let large = vec![1; 400 << 10];
    let keys = [b"first", b"other", b"third"].map(|packed| Key::of(packed));
    let age = |index: usize, seconds| {
        let file = File::open(place.path().join(keys[index].name())).unwrap();
        let used = SystemTime::now() - Duration::from_secs(seconds);
        file.set_times(fs::FileTimes::new().set_accessed(used)).unwrap();
    };
    place.cache().keep(keys[0], &large).unwrap();
    place.cache().keep(keys[1], &large).unwrap();
    age(0, 20);
    age(1, 10);
    assert!(place.cache().find(keys[0]).is_some(), "used just now");
    let stale = place.path().join("0123.new");
    File::create(&stale).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    place.cache().keep(keys[2], &large).unwrap();
    let found = keys.map(|key| place.cache().find(key).is_some());
    assert_eq!(found, [true, false, true]);
    assert!(!stale.exists());
    assert!(place.cache().keep(Key::of(b"huge"), &vec![0; 2 << 20]).is_none());
    assert_eq!(place.files().len(), 2, "what does not fit pushes nothing out");
}
