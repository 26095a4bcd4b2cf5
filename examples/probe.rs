use candle_core::{Device, Tensor};
use candlepower::subject::ops::{Matrix, MatrixMut, product};
use std::time::Instant;
fn main() {
    let time = |what: &str, flops: f64, f: &mut dyn FnMut()| {
        f();
        let mut ts: Vec<f64> = (0..7)
            .map(|_| {
                let t = Instant::now();
                f();
                t.elapsed().as_secs_f64()
            })
            .collect();
        ts.sort_by(f64::total_cmp);
        println!("{what}: {:.2} ms {:.0} GFLOP/s", ts[3] * 1e3, flops / ts[3] / 1e9);
    };
    let (r, d, v) = (1024usize, 256usize, 32000usize);
    let x: Vec<f32> = (0..r * d).map(|i| (i as f32 * 0.1).sin()).collect();
    let w: Vec<f32> = (0..v * d).map(|i| (i as f32 * 0.3).sin()).collect();
    for rows in [64, 128, 256, 512, 1024] {
        let mut l = vec![0f32; rows * v];
        let fl = 2.0 * (r * d * v) as f64;
        for threads in [1, 2] {
            time(&format!("logits {rows} t{threads}"), fl, &mut || {
                for c in 0..r / rows {
                    product(
                        MatrixMut::new(&mut l, rows, v, v),
                        0.0,
                        1.0,
                        Matrix::new(&x[c * rows * d..], rows, d, d),
                        Matrix::new(&w, v, d, d).transposed(),
                        threads,
                    );
                }
            });
        }
        let mut dx = vec![0f32; r * d];
        time(&format!("dx {rows}"), fl, &mut || {
            for c in 0..r / rows {
                product(
                    MatrixMut::new(&mut dx[c * rows * d..], rows, d, d),
                    0.0,
                    1.0,
                    Matrix::new(&l, rows, v, v),
                    Matrix::new(&w, v, d, d),
                    2,
                );
            }
        });
        let mut dw = vec![0f32; v * d];
        time(&format!("dw {rows}"), fl, &mut || {
            for c in 0..r / rows {
                product(
                    MatrixMut::new(&mut dw, v, d, d),
                    1.0,
                    1.0,
                    Matrix::new(&l, rows, v, v).transposed(),
                    Matrix::new(&x[c * rows * d..], rows, d, d),
                    2,
                );
            }
        });
        let mut dwt = vec![0f32; v * d];
        time(&format!("dw-t {rows}"), fl, &mut || {
            for c in 0..r / rows {
                product(
                    MatrixMut::new(&mut dwt, d, v, v),
                    1.0,
                    1.0,
                    Matrix::new(&x[c * rows * d..], rows, d, d).transposed(),
                    Matrix::new(&l, rows, v, v),
                    2,
                );
            }
        });
    }
    let a = Tensor::randn(0f32, 1f32, (1024, 256), &Device::Cpu).unwrap();
    let b = Tensor::randn(0f32, 1f32, (1024, 256), &Device::Cpu).unwrap();
    let h = Tensor::randn(0f32, 1f32, (1024, 1024), &Device::Cpu).unwrap();
    let f = 2.0 * 1024.0 * 256.0 * 1024.0;
    time("candle up", f, &mut || drop(a.matmul(&b.t().unwrap()).unwrap()));
    time("candle dup-x", f, &mut || drop(h.matmul(&b).unwrap()));
    time("candle dup-w", f, &mut || drop(a.t().unwrap().matmul(&h).unwrap()));
    time("alloc 131MB", 0.0, &mut || {
        let mut z: Vec<f32> = Vec::with_capacity(32_768_000);
        z.resize(32_768_000, 1.0);
        std::hint::black_box(z);
    });
    time("big 2048", 2.0 * 2048f64.powi(3), &mut {
        let q = Tensor::randn(0f32, 1f32, (2048, 2048), &Device::Cpu).unwrap();
        move || drop(q.matmul(&q).unwrap())
    });
}
