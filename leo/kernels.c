// The parts of a meta-update between its large matrix products, each in one pass over memory: what leo/closed_form.py,
// leo/softmax.py, leo/dropout.py and leo/networks.py write in torch. leo/kernels.py compiles this where there is a C
// compiler, and says what each function computes. Arrays are dense, the last dimension of features D is contiguous.
// B tasks, N classes, n images of a task's support (K of class 0 first, then K of class 1, ...), M weight vectors a class.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#ifdef __AVX512F__
#define BYTES 64
#else
#define BYTES 32
#endif
#define LANES ((long)(BYTES / sizeof(real)))
typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
#define LOAD(p) (*(const vec *)(p))
#define STORE(p) (*(vec *)(p))
#define INLINE static inline __attribute__((always_inline))
#define WIDE 6  // vectors of one operand that a tile holds; two tiles' worth of sums fit into 16 registers

// exp, to one unit in the last place or two; infinite above 88.72 and zero below -87.33, NaN for NaN.
INLINE real exponential(real x) {
  if (sizeof(real) == 8) return (real)exp((double)x);
  const float y = x < -87.33f ? -87.33f : (x > 88.72f ? 88.72f : (float)x);
  const float n = (y * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest whole number
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float q = 1.9875691500e-4f;
  q = q * r + 1.3981999507e-3f;
  q = q * r + 8.3334519073e-3f;
  q = q * r + 4.1665795894e-2f;
  q = q * r + 1.6666665459e-1f;
  q = q * r + 5.0000001201e-1f;
  q = q * (r * r) + r + 1.0f;
  const int half = (int)n >> 1, rest = (int)n - half;  // in two factors: 2^128 is no float
  union { int i; float f; } a = {(half + 127) << 23}, b = {(rest + 127) << 23};
  q = q * a.f * b.f;
  q = x > 88.72f ? INFINITY : q;
  return x < -87.33f ? 0 : q;
}

typedef real half __attribute__((vector_size(BYTES / 2)));
typedef real quarter __attribute__((vector_size(BYTES / 4)));

INLINE real sum_of(vec v) {
  union { vec v; half h[2]; } a = {v};
  union { half h; quarter q[2]; } b = {a.h[0] + a.h[1]};
  const quarter q = b.q[0] + b.q[1];
  real s = 0;
  for (int i = 0; i < LANES / 4; i++) s += q[i];
  return s;
}

// out[i, j] = a_i . b_j, for I <= 2 rows of a and J <= WIDE rows of b.
INLINE void dots_tile(const int I, const int J, const real *a, const real *b, long d, real *out, long step) {
  vec sums[2][WIDE] = {{{0}}};
  long k = 0;
  for (; k + LANES <= d; k += LANES)
    for (int i = 0; i < I; i++)
      for (int j = 0; j < J; j++) sums[i][j] += LOAD(a + i * d + k) * LOAD(b + j * d + k);
  for (int i = 0; i < I; i++)
    for (int j = 0; j < J; j++) {
      real s = sum_of(sums[i][j]);
      for (long l = k; l < d; l++) s += a[i * d + l] * b[j * d + l];
      out[i * step + j] = s;
    }
}

#define BY_WIDTH(width, call)                                  \
  switch (width) {                                             \
    case 1: { enum { W = 1 }; call; } break;                   \
    case 2: { enum { W = 2 }; call; } break;                   \
    case 3: { enum { W = 3 }; call; } break;                   \
    case 4: { enum { W = 4 }; call; } break;                   \
    case 5: { enum { W = 5 }; call; } break;                   \
    default: { enum { W = 6 }; call; } break;                  \
  }

// out[i, j] = a_i . b_j, rows of a [na, d] and b [nb, d].
static void dots(const real *a, long na, const real *b, long nb, long d, real *out) {
  for (long j = 0; j < nb; j += WIDE) {
    const int width = nb - j < WIDE ? (int)(nb - j) : WIDE;
    long i = 0;
    for (; i + 2 <= na; i += 2) BY_WIDTH(width, dots_tile(2, W, a + i * d, b + j * d, d, out + i * nb + j, nb))
    if (i < na) BY_WIDTH(width, dots_tile(1, W, a + i * d, b + j * d, d, out + i * nb + j, nb))
  }
}

// out[c] = sum_i r[i, c] x_i, added to out where ``add``; for C <= WIDE columns of r, whose rows are ``step`` apart.
INLINE void combine_tile(const int C, const real *r, long step, const real *x, long n, long d, real *out, int add) {
  long k = 0;
  for (; k + LANES <= d; k += LANES) {
    vec sums[WIDE] = {{0}};
    for (long i = 0; i < n; i++) {
      const vec row = LOAD(x + i * d + k);
      for (int c = 0; c < C; c++) sums[c] += r[i * step + c] * row;
    }
    for (int c = 0; c < C; c++) {
      if (add) sums[c] += LOAD(out + c * d + k);
      STORE(out + c * d + k) = sums[c];
    }
  }
  for (; k < d; k++)
    for (int c = 0; c < C; c++) {
      real s = add ? out[c * d + k] : 0;
      for (long i = 0; i < n; i++) s += r[i * step + c] * x[i * d + k];
      out[c * d + k] = s;
    }
}

// out[c] = sum_i r[i, c] x_i: r [n, nc], x [n, d], out [nc, d].
static void combine(const real *r, long nc, const real *x, long n, long d, real *out, int add) {
  for (long c = 0; c < nc; c += WIDE) {
    const int width = nc - c < WIDE ? (int)(nc - c) : WIDE;
    BY_WIDTH(width, combine_tile(W, r + c, nc, x, n, d, out + c * d, add))
  }
}

// Each row of p [n, N] from scores to probabilities; the logarithm of what they were divided by, and the largest score.
static void softmax_rows(real *p, long n, long num_way, real *logsumexp) {
  for (long i = 0; i < n; i++) {
    real *row = p + i * num_way, largest = row[0];
    for (long c = 1; c < num_way; c++) largest = (row[c] > largest || row[c] != row[c]) ? row[c] : largest;
    for (long c = 0; c < num_way; c++) row[c] -= largest;
    if (logsumexp) logsumexp[i] = largest;
  }
  for (long i = 0; i < n * num_way; i++) p[i] = exponential(p[i]);
  for (long i = 0; i < n; i++) {
    real *row = p + i * num_way, sum = 0;
    for (long c = 0; c < num_way; c++) sum += row[c];
    for (long c = 0; c < num_way; c++) row[c] /= sum;
    if (logsumexp) logsumexp[i] += (real)log((double)sum);
  }
}

// The mean of M rows for each of N classes; rows itself where M is 1.
static const real *class_means(const real *rows, long num_way, long num_codes, long d, real *out) {
  if (num_codes == 1) return rows;
  for (long c = 0; c < num_way; c++)
    for (long k = 0; k < d; k++) {
      real s = 0;
      for (long m = 0; m < num_codes; m++) s += rows[(c * num_codes + m) * d + k];
      out[c * d + k] = s / num_codes;
    }
  return out;
}

// Random numbers: sixteen xoshiro128++ generators side by side, begun by splitmix64 from one seed.
enum { STREAMS = 16 };
typedef unsigned lanes __attribute__((vector_size(4 * STREAMS)));
typedef struct { lanes s[4]; } generator;

static generator generator_of(unsigned long seed) {
  generator g;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < STREAMS; j++) {
      unsigned long z = (seed += 0x9e3779b97f4a7c15ul);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ul;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebul;
      g.s[i][j] = (unsigned)((z ^ (z >> 31)) >> 32);
    }
  return g;
}

#define ROTATED(x, k) (((x) << (k)) | ((x) >> (32 - (k))))
INLINE lanes next(generator *g) {
  lanes *s = g->s, sum = s[0] + s[3], result = ROTATED(sum, 7) + s[0], shifted = s[1] << 9;
  s[2] ^= s[0], s[3] ^= s[1], s[1] ^= s[2], s[0] ^= s[3], s[2] ^= shifted;
  s[3] = ROTATED(s[3], 11);
  return result;
}

// Uniform 16-bit numbers.
void leo_random_bits(long seed, long count, short *out, int threads) {
  (void)threads;
  generator g = generator_of((unsigned long)seed);
  long k = 0;
  for (; k + 2 * STREAMS <= count; k += 2 * STREAMS) {
    const lanes drawn = next(&g);
    memcpy(out + k, &drawn, sizeof drawn);
  }
  if (k < count) {
    const lanes drawn = next(&g);
    memcpy(out + k, &drawn, sizeof(short) * (count - k));
  }
}

// Standard-normal numbers by Box and Muller, sqrt(-2 log u) (cos, sin)(2 pi v), up to 6.7: u has 32 bits, v has 24.
void leo_normal(long seed, long count, real *out, int threads) {
  (void)threads;
  generator g = generator_of((unsigned long)seed);
  for (long k = 0; k < count; k += 2 * STREAMS) {
    const lanes of_u = next(&g), of_v = next(&g);
    real pair[2][STREAMS];
    for (int j = 0; j < STREAMS; j++) {
      // log u = log m + e log 2, with m in [sqrt(1/2), sqrt(2)).
      union { float f; int i; } u = {((float)(int)(of_u[j] >> 1) + 0.5f) * 0x1p-31f}, m;
      const int e = (u.i - 0x3f3504f3) >> 23;
      m.i = u.i - (e << 23);
      const float x = m.f - 1.0f, y = x * x;
      float q = 7.0376836292e-2f;
      q = q * x - 1.1514610310e-1f;
      q = q * x + 1.1676998740e-1f;
      q = q * x - 1.2420140846e-1f;
      q = q * x + 1.4249322787e-1f;
      q = q * x - 1.6668057665e-1f;
      q = q * x + 2.0000714765e-1f;
      q = q * x - 2.4999993993e-1f;
      q = q * x + 3.3333331174e-1f;
      const float log_u = x + (q * x * y - 0.5f * y) + (float)e * 0.69314718f;
      const float radius = __builtin_sqrtf(-2.0f * log_u);
      // The angle: an eighth-turn t in [-pi/4, pi/4), then one of four quarter-turns.
      const int v = (int)(of_v[j] >> 8), quarter = v >> 22;
      const float t = ((float)(v & 0x3fffff) - 2097151.5f) * (0.78539816f / 2097152.0f), w = t * t;
      const float sine = t + t * w * (-1.6666654611e-1f + w * (8.3321608736e-3f - w * 1.9515295891e-4f));
      const float cosine = 1.0f - 0.5f * w + w * w * (4.166664568e-2f + w * (-1.388731625e-3f + w * 2.443315711e-5f));
      const float a = quarter & 1 ? sine : cosine, b = quarter & 1 ? cosine : sine, sign = quarter & 2 ? -1.0f : 1.0f;
      pair[0][j] = radius * (sign * a), pair[1][j] = radius * (sign * (quarter & 1 ? -b : b));
    }
    memcpy(out + k, pair, sizeof(real) * (count - k < 2 * STREAMS ? count - k : 2 * STREAMS));
  }
}

// w = mean + max(exp(u) - offset, floor) eps and its slope dw/du, from [mean, u] [R, 2D].
void leo_decode(const real *parameters, const real *eps, double offset_, double floor_, long num_rows, long d,
                real *weights, real *slope, int threads) {
  const real offset = (real)offset_, lowest = (real)floor_, limit = (real)(offset_ + floor_);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < num_rows; r++) {
    const real *mean = parameters + 2 * r * d, *u = mean + d, *e = eps + r * d;
    real *w = weights + r * d, *s = slope + r * d;
    for (long k = 0; k < d; k++) {
      const real exp_u = exponential(u[k]), std = exp_u - offset;
      s[k] = (exp_u <= limit ? 0 : exp_u) * e[k];
      w[k] = mean[k] + (std < lowest ? lowest : std) * e[k];
    }
  }
}

// Probabilities p [B, n, N] of the support under the weights [B N M, D], and the factor [g, g * slope] (g alone where
// there is no slope) of each row: g = dL/dw of the summed cross-entropy.
void leo_gradient(const real *weights, const real *slope, const real *images, long num_tasks, long num_way,
                  long num_codes, long n, long d, real *p_, real *factor, int threads) {
  const long num_shot = n / num_way, width = slope ? 2 * d : d;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    real *means = malloc(sizeof(real) * num_way * d), *g = malloc(sizeof(real) * num_way * d);
    real *residual = malloc(sizeof(real) * num_way * n);
#pragma omp for
    for (long b = 0; b < num_tasks; b++) {
      const real *x = images + b * n * d, *rows = weights + b * num_way * num_codes * d;
      real *p = p_ + b * n * num_way;
      dots(x, n, class_means(rows, num_way, num_codes, d, means), num_way, d, p);
      softmax_rows(p, n, num_way, NULL);
      memcpy(residual, p, sizeof(real) * n * num_way);
      for (long i = 0; i < n; i++) residual[i * num_way + i / num_shot] -= 1;
      combine(residual, num_way, x, n, d, g, 0);
      for (long r = 0; r < num_way * num_codes; r++) {
        const long row = b * num_way * num_codes + r;
        const real *of_class = g + r / num_codes * d, *s = slope + row * d, share = (real)1 / num_codes;
        real *out = factor + row * width;
        for (long k = 0; k < d; k++) out[k] = share * of_class[k];
        if (slope)
          for (long k = 0; k < d; k++) out[d + k] = out[k] * s[k];
      }
    }
    free(means), free(g), free(residual);
  }
}

// Hessian of the summed cross-entropy times v [N, D]: out = sum_i p (s - p.s) x_i with s = v x. ``scores`` is scratch.
static void hessian(const real *p, const real *x, const real *v, long n, long num_way, long d, real *scores, real *out) {
  dots(x, n, v, num_way, d, scores);
  for (long i = 0; i < n; i++) {
    real sum = 0;
    for (long c = 0; c < num_way; c++) sum += scores[i * num_way + c] *= p[i * num_way + c];
    for (long c = 0; c < num_way; c++) scores[i * num_way + c] -= p[i * num_way + c] * sum;
  }
  combine(scores, num_way, x, n, d, out, 0);
}

// The derivative of ``leo_gradient`` and of the decoding: from the gradient of the factor [R, 2D] (or [R, D]) to that of
// [mean, u] of the weights that it was made of, ``out``. ``factor`` is what leo_gradient gave.
void leo_hessian(const real *to_factor, const real *slope, const real *images, const real *p, const real *factor,
                 long num_tasks, long num_way, long num_codes, long n, long d, real *out_, int threads) {
  const long width = slope ? 2 * d : d, num_rows = num_way * num_codes;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    real *to_g = malloc(sizeof(real) * num_rows * d), *means = malloc(sizeof(real) * num_way * d);
    real *to_class = malloc(sizeof(real) * num_way * d), *scores = malloc(sizeof(real) * num_way * n);
#pragma omp for
    for (long b = 0; b < num_tasks; b++) {
      for (long r = 0; r < num_rows; r++) {
        const long row = b * num_rows + r;
        const real *to = to_factor + row * width, *s = slope + row * d;
        if (slope)
          for (long k = 0; k < d; k++) to_g[r * d + k] = to[k] + to[d + k] * s[k];
        else
          memcpy(to_g + r * d, to, sizeof(real) * d);
      }
      const real *v = class_means(to_g, num_way, num_codes, d, means);
      hessian(p + b * n * num_way, images + b * n * d, v, n, num_way, d, scores, to_class);
      for (long r = 0; r < num_rows; r++) {
        const long row = b * num_rows + r;
        const real *of_class = to_class + r / num_codes * d, share = (real)1 / num_codes;
        const real *to_product = to_factor + row * width + d, *s = slope + row * d, *g = factor + row * width;
        real *out = out_ + row * width;
        if (slope)
          for (long k = 0; k < d; k++) {
            const real to_weights = share * of_class[k];
            out[k] = to_weights;
            out[d + k] = s[k] * (to_weights + to_product[k] * g[k]);
          }
        else
          for (long k = 0; k < d; k++) out[k] = share * of_class[k];
      }
    }
    free(to_g), free(means), free(to_class), free(scores);
  }
}

// One step of fine-tuning: out = w - rate dL/dw; keeps p [B, n, N] and the gradient. Rates [N, D], or [D] where
// ``rate_step`` is 0.
void leo_weight_step(const real *weights, const real *rate, long rate_step, const real *images, long num_tasks,
                     long num_way, long n, long d, real *p_, real *gradient, real *out, int threads) {
  const long num_shot = n / num_way;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    real *residual = malloc(sizeof(real) * num_way * n);
#pragma omp for
    for (long b = 0; b < num_tasks; b++) {
      const real *x = images + b * n * d, *w = weights + b * num_way * d;
      real *p = p_ + b * n * num_way, *g = gradient + b * num_way * d;
      dots(x, n, w, num_way, d, p);
      softmax_rows(p, n, num_way, NULL);
      memcpy(residual, p, sizeof(real) * n * num_way);
      for (long i = 0; i < n; i++) residual[i * num_way + i / num_shot] -= 1;
      combine(residual, num_way, x, n, d, g, 0);
      for (long c = 0; c < num_way; c++)
        for (long k = 0; k < d; k++) {
          const long j = (b * num_way + c) * d + k;
          out[j] = weights[j] - rate[c * rate_step + k] * gradient[j];
        }
    }
    free(residual);
  }
}

// Its derivative: to_weights from after the step to before it; each task's part of that of the rates is added to to_rate.
void leo_weight_step_backward(real *to_weights, real *to_rate, const real *rate, long rate_step, const real *images,
                              const real *p, const real *gradient, long num_tasks, long num_way, long n, long d,
                              int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    real *v = malloc(sizeof(real) * num_way * d), *scores = malloc(sizeof(real) * num_way * n);
    real *product = malloc(sizeof(real) * num_way * d);
#pragma omp for
    for (long b = 0; b < num_tasks; b++) {
      const long first = b * num_way * d;
      for (long c = 0; c < num_way; c++)
        for (long k = 0; k < d; k++) {
          const long j = first + c * d + k;
          v[c * d + k] = rate[c * rate_step + k] * to_weights[j];
          to_rate[j] -= to_weights[j] * gradient[j];
        }
      hessian(p + b * n * num_way, images + b * n * d, v, n, num_way, d, scores, product);
      for (long k = 0; k < num_way * d; k++) to_weights[first + k] -= product[k];
    }
    free(v), free(scores), free(product);
  }
}

// x [n, D] under ``count`` masks: kept where bits >= threshold, times scale. bits and out [count, n, D].
void leo_dropout(const real *x, const short *bits, long threshold_, double scale, long count, long size, real *out,
                 int threads) {
  const int threshold = (int)threshold_;
  const real factor = (real)scale;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long t = 0; t < count; t++) {
    const short *b = bits + t * size;
    real *o = out + t * size;
    for (long k = 0; k < size; k++) o[k] = b[k] >= threshold ? x[k] * factor : x[k] * 0;
  }
}

// Cross-entropy and correctness of each query, [B, N, Q], and the gradient of the mean cross-entropy with respect to
// the weights [B, N, D]; queries [B, N, Q, D] under the dropout mask of ``bits`` (NULL: none).
void leo_query(const real *weights, const real *query, const short *bits, long threshold_, double scale,
               long num_tasks, long num_way, long num_query, long d, real *loss_, real *correct, real *gradient,
               int threads) {
  enum { ROWS = 4 };
  const int threshold = (int)threshold_;
  const real factor = (real)scale, share = (real)1 / (num_tasks * num_way * num_query);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    real *dropped = malloc(sizeof(real) * ROWS * d), *p = malloc(sizeof(real) * ROWS * num_way), logsumexp[ROWS];
#pragma omp for
    for (long b = 0; b < num_tasks; b++) {
      const real *w = weights + b * num_way * d;
      real *g = gradient + b * num_way * d;
      memset(g, 0, sizeof(real) * num_way * d);
      for (long i = 0; i < num_way * num_query; i += ROWS) {
        const long count = num_way * num_query - i < ROWS ? num_way * num_query - i : ROWS;
        const long first = b * num_way * num_query + i;
        const real *x = query + first * d;
        if (bits) {
          const short *kept = bits + first * d;
          for (long k = 0; k < count * d; k++) dropped[k] = kept[k] >= threshold ? x[k] * factor : x[k] * 0;
          x = dropped;
        }
        dots(x, count, w, num_way, d, p);
        for (long j = 0; j < count; j++) {
          const long label = (i + j) / num_query;
          long best = 0;
          for (long c = 1; c < num_way; c++) best = p[j * num_way + c] > p[j * num_way + best] ? c : best;
          correct[first + j] = best == label;
          loss_[first + j] = -p[j * num_way + label];
        }
        softmax_rows(p, count, num_way, logsumexp);
        for (long j = 0; j < count; j++) {
          loss_[first + j] += logsumexp[j];
          p[j * num_way + (i + j) / num_query] -= 1;
        }
        for (long k = 0; k < count * num_way; k++) p[k] *= share;
        combine(p, num_way, x, count, d, g, 1);
      }
    }
    free(dropped), free(p);
  }
}

// relu(left_i + right_j) for each ordered pair of a task's n images: left and right are the halves of [B, n, 2H],
// out [B, n, n, H].
void leo_pairs(const real *halves, long num_tasks, long n, long h, real *out, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < num_tasks * n; row++) {
    const real *left = halves + row * 2 * h, *others = halves + row / n * n * 2 * h + h;
    for (long j = 0; j < n; j++) {
      const real *right = others + j * 2 * h;
      real *o = out + (row * n + j) * h;
      for (long k = 0; k < h; k++) {
        const real s = left[k] + right[k];
        o[k] = s < 0 ? 0 : s;
      }
    }
  }
}

// Mean over the partners and over the K images of a class of relu(x), x [B, N, K, n, H]: out [B, N, H].
void leo_pair_means(const real *x, long num_classes, long num_pairs, long h, real *out, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long c = 0; c < num_classes; c++) {
    real *o = out + c * h;
    memset(o, 0, sizeof(real) * h);
    for (long i = 0; i < num_pairs; i++) {
      const real *row = x + (c * num_pairs + i) * h;
      for (long k = 0; k < h; k++) o[k] += row[k] < 0 ? 0 : row[k];
    }
    for (long k = 0; k < h; k++) o[k] /= num_pairs;
  }
}

// Its derivative: out = to_mean / num_pairs where x > 0.
void leo_pair_means_backward(const real *to_mean, const real *x, long num_classes, long num_pairs, long h, real *out,
                             int threads) {
  const real share = (real)1 / num_pairs;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long c = 0; c < num_classes; c++)
    for (long i = 0; i < num_pairs; i++) {
      const long first = (c * num_pairs + i) * h;
      for (long k = 0; k < h; k++) out[first + k] = x[first + k] > 0 ? share * to_mean[c * h + k] : 0;
    }
}

// The derivative of ``leo_pairs``: to_out [B, n, n, H] and its value ``pairs`` to the gradient of the halves [B, n, 2H].
void leo_pairs_backward(const real *to_out, const real *pairs, long num_tasks, long n, long h, real *to_halves,
                        int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long b = 0; b < num_tasks; b++) {
    real *to = to_halves + b * n * 2 * h;
    memset(to, 0, sizeof(real) * n * 2 * h);
    for (long i = 0; i < n; i++)
      for (long j = 0; j < n; j++) {
        const long first = ((b * n + i) * n + j) * h;
        real *left = to + i * 2 * h, *right = to + j * 2 * h + h;
        for (long k = 0; k < h; k++) {
          const real v = pairs[first + k] > 0 ? to_out[first + k] : 0;
          left[k] += v, right[k] += v;
        }
      }
  }
}
