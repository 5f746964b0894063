//! Answers of a vhost-user back end.
#![no_main]

fuzzing::target!("vhost_user");
