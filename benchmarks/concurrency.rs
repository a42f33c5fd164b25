//! How a window that steers itself behaves over time, against simulated servers in paused time: one CSV row a second.
//!
//! `cargo run --no-default-features --example concurrency > concurrency.csv`, then `benchmarks/plot_concurrency.py` draws
//! `docs/concurrency.svg`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark may fail, and prints"
)]

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/engine/simulation.rs"]
mod simulation;

use millstream::engine::limit::{AutoConcurrency, Window};
use simulation::{Beyond, Scene, Service, run};

fn scenes() -> Vec<(&'static str, Scene)> {
    let service = Service::Lognormal(1.0, 0.5);
    let moving = Scene { slots: vec![(0, 32), (300, 8), (600, 64)], ..Scene::new(32, service, 900) };
    vec![
        ("4 slots", Scene::new(4, service, 300)),
        ("8 slots", Scene::new(8, service, 300)),
        ("32 slots", Scene::new(32, service, 300)),
        ("200 slots", Scene::new(200, service, 300)),
        ("slots 32, 8, 64", moving),
        ("refuses above 20", Scene { beyond: Beyond::Refuse, ..Scene::new(20, service, 300) }),
        ("unlimited, 50 ms", Scene::new(100_000, Service::Lognormal(0.05, 0.5), 10)),
        ("600 a minute", Scene { rate: Some(10.0), ..Scene::new(100_000, service, 120) }),
    ]
}

fn main() {
    println!("scene,second,slots,limit,throughput,p95");
    for (name, scene) in scenes() {
        let auto = AutoConcurrency::default();
        let log = run(&scene, Window::auto(auto), auto.max);
        for second in 0..scene.seconds {
            let at = second as f64;
            let slots = scene.slots.iter().rev().find(|(from, _)| *from <= second).unwrap().1;
            // A window of ten seconds smooths what is counted.
            let from = (at - 9.0).max(0.0);
            let (throughput, p95) = log.between(from, at + 1.0);
            println!("\"{name}\",{second},{slots},{},{throughput:.2},{p95:.3}", log.limit_at(at + 1.0));
        }
    }
}
