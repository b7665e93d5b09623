//! The tests of the tests: what a broken server would do, found by the runs of `kills`.

use cowdisk::ublk::CopyMode;
use cowdisk::ublk::sim::{Mutation, Profile};

use super::kills::{Plan, run};
use super::model::Fault;

fn finding(fault: Option<Fault>, mutation: Option<Mutation>) -> String {
    for seed in 0..40 {
        let profile = Profile::of(6, 16);
        let copies = mutation == Some(Mutation::NoCopy);
        let copy = if copies { CopyMode::UserCopy } else { CopyMode::AtFetch };
        let plan = Plan { profile, seed, copy, unseen: false, fault, mutation, kills: 4, requests: 40 };
        if let Err(found) = run(&plan) {
            return found;
        }
    }
    panic!("{fault:?} {mutation:?} was not found")
}

#[test]
fn every_mutation_is_found() {
    let faults = [Fault::EarlyAck, Fault::LastSector, Fault::Hang];
    for fault in faults {
        println!("ublk mutation {fault:?}: {}", finding(Some(fault), None));
    }
    for mutation in Mutation::ALL {
        println!("ublk mutation {mutation:?}: {}", finding(None, Some(mutation)));
    }
    println!("ublk: {} mutations, all found", faults.len() + Mutation::ALL.len());
}
