//! The commands beside `run`: `hello`, `guests`, `check`.

use std::fs;

use bivisor::guests;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::common::{bivisor, cases, folder, guest, kvm};

pub fn trials() -> Vec<Trial> {
    cases![
        hello_needs_no_file, kvm;
        guests_are_listed_with_what_they_prove;
        an_exported_guest_is_a_flat_file_that_runs, kvm;
        check_tells_what_the_host_can_do, kvm;
    ]
}

fn hello_needs_no_file() {
    let ran = bivisor("hello").finish();
    assert_eq!((ran.text().as_str(), ran.stderr.as_str(), ran.status), ("Hello, world!\n", "", 0));
}

fn guests_are_listed_with_what_they_prove() {
    let ran = bivisor("guests").finish();
    assert_eq!(ran.status, 0);
    let json = bivisor("guests --json").finish();
    let json: Value = serde_json::from_slice(&json.stdout).expect("the list is JSON");
    let list = json.as_array().expect("the list is a list");
    assert_eq!(list.len(), guests::all().len());
    for (guest, listed) in guests::all().iter().zip(list) {
        assert!(ran.text().contains(guest.name) && ran.text().contains(guest.proves), "{ran:?}");
        assert_eq!(listed["name"], guest.name);
        assert_eq!(listed["proves"], guest.proves);
        assert_eq!(listed["options"], guest.options);
    }
}

fn an_exported_guest_is_a_flat_file_that_runs() {
    let folder = folder();
    let path = folder.path().join("exported");
    let ran = bivisor("guests export hello").arg(&path).finish();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(fs::read(&path).unwrap(), guest("hello").image);
    let ran = bivisor("run").arg(&path).finish();
    assert_eq!((ran.text().as_str(), ran.status), ("Hello, world!\n", 0));
}

fn check_tells_what_the_host_can_do() {
    let ran = bivisor("check").finish();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(ran.text().contains("12"), "{ran:?}");
    let ran = bivisor("check --json").finish();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let json: Value = serde_json::from_slice(&ran.stdout).expect("it is JSON");
    assert_eq!(json["kvm-api-version"], "12", "{json}");
}
