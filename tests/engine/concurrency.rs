//! A window that steers itself against simulated servers. What it must reach after it has converged: at least 90 % of the
//! throughput of the best fixed window, and at most 1.5 times its 95th percentile of the latency.

use millstream::engine::limit::{AutoConcurrency, Window};

use super::simulation::{Beyond, Log, Scene, Service, run};

const CEILING: usize = 1000;

fn auto(scene: &Scene) -> Log {
    run(scene, Window::auto(AutoConcurrency::default()), CEILING)
}

/// The throughput and the 95th percentile from one second to another, over those of a window of just the server's size.
fn against_best(log: &Log, scene: &Scene, slots: usize, from: u64, to: u64) -> (f64, f64) {
    let best = Scene { slots: vec![(0, slots)], seconds: 100, ..scene.clone() };
    let (best_throughput, best_p95) = run(&best, Window::fixed(slots), slots).between(20.0, 100.0);
    let (throughput, p95) = log.between(from as f64, to as f64);
    (throughput / best_throughput, p95 / best_p95)
}

#[track_caller]
fn assert_near_best(log: &Log, scene: &Scene, slots: usize, from: u64, to: u64) {
    let (throughput, p95) = against_best(log, scene, slots, from, to);
    assert!(
        throughput >= 0.9 && p95 <= 1.5,
        "{slots} slots, {from} to {to} s: throughput {throughput:.3}, p95 {p95:.2}"
    );
}

/// Service of one second on the average, from nearly fixed to rather spread.
const SERVICES: [Service; 3] =
    [Service::Lognormal(1.0, 0.05), Service::Lognormal(1.0, 0.3), Service::Lognormal(1.0, 0.5)];

fn finds_the_knee(slots: usize, seconds: u64, from: u64) {
    for service in SERVICES {
        let scene = Scene::new(slots, service, seconds);
        assert_near_best(&auto(&scene), &scene, slots, from, seconds);
    }
}

#[test]
fn finds_eight_slots() {
    finds_the_knee(8, 400, 150);
}

#[test]
fn finds_thirty_two_slots() {
    finds_the_knee(32, 300, 100);
}

#[test]
fn finds_two_hundred_slots() {
    finds_the_knee(200, 150, 50);
}

/// All answers end in the same instant then, and one request too many waits a whole turn: no measure of a tail.
#[test]
fn service_in_lockstep_costs_no_throughput_and_at_most_one_turn() {
    for (slots, seconds) in [(8, 300), (32, 300), (200, 150)] {
        let scene = Scene::new(slots, Service::Fixed(1.0), seconds);
        let (throughput, p95) = against_best(&auto(&scene), &scene, slots, seconds / 2, seconds);
        assert!(throughput >= 0.9 && p95 <= 2.0, "{slots} slots: throughput {throughput:.3}, p95 {p95:.2}");
    }
}

#[test]
fn four_slots_are_found_from_far_above_within_a_minute() {
    let scene = Scene::new(4, Service::Lognormal(1.0, 0.3), 300);
    let log = auto(&scene);
    assert!(log.limit_at(60.0) <= 16, "{:?}", log.limits);
    assert_near_best(&log, &scene, 4, 150, 300);
}

#[test]
fn follows_a_knee_that_moves_down_and_up() {
    for sigma in [0.3, 0.5] {
        let slots = vec![(0, 32), (300, 8), (600, 64)];
        let scene = Scene { slots: slots.clone(), ..Scene::new(32, Service::Lognormal(1.0, sigma), 900) };
        let log = auto(&scene);
        for (from, slots) in slots {
            assert_near_best(&log, &scene, slots, from + 150, from + 300);
        }
    }
}

#[test]
fn stays_just_below_a_concurrency_at_which_the_server_refuses() {
    for service in SERVICES {
        let scene = Scene { beyond: Beyond::Refuse, ..Scene::new(20, service, 300) };
        let log = auto(&scene);
        assert_near_best(&log, &scene, 20, 50, 300);
        let share = log.refused as f64 / log.answers.len() as f64;
        assert!(share < 0.05, "{share:.3} refused");
    }
}

#[test]
fn grows_to_the_ceiling_in_a_second_where_nothing_holds_it() {
    for service in [Service::Fixed(0.05), Service::Lognormal(0.05, 0.5)] {
        let log = auto(&Scene::new(10 * CEILING, service, 5));
        let reached = log.limits.iter().find(|(_, limit)| *limit == CEILING).unwrap();
        assert!(reached.0 < 1.0, "{:?}", log.limits);
        // And stays near it: looks down cost a tenth at most.
        let (throughput, _) = log.between(2.0, 5.0);
        assert!(throughput > 0.9 * CEILING as f64 / 0.05, "{throughput}");
    }
}

#[test]
fn does_not_grow_for_a_caller_that_its_rate_holds_back() {
    let scene = Scene { rate: Some(10.0), ..Scene::new(CEILING, Service::Lognormal(0.5, 0.5), 120) };
    let log = auto(&scene);
    assert_eq!(log.limits, [(0.0, AutoConcurrency::default().initial)]);
    assert!(log.between(0.0, 120.0).0 > 9.8);
}

#[test]
fn tells_long_answers_from_a_slow_server_by_their_tokens() {
    let scene = Scene::new(32, Service::Mixed, 400);
    assert_near_best(&auto(&scene), &scene, 32, 150, 400);
}

#[test]
fn a_batch_is_not_slower_than_with_the_fixed_default() {
    // Work for a few seconds, as most batches are, where it starts far above, at and below the knee.
    for (slots, service) in [(4, 0.2), (64, 0.5), (1000, 0.05), (1000, 2.0)] {
        let scene = Scene::new(slots, Service::Lognormal(service, 0.3), 20);
        let answers = |log: &Log| log.answers.len() as f64;
        let fixed = answers(&run(&scene, Window::fixed(64), 64));
        let found = answers(&auto(&scene));
        assert!(found >= 0.9 * fixed, "{slots} slots: {found} answers, {fixed} with a fixed window");
    }
}
