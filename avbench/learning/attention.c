/* Element-wise part of audio-guided attention on a CPU; see attention.py for the equations.
 *
 * Arrays are float32, contiguous, and start at the same clip: rows are the L frames of all clips,
 * (rows, cells, dim) for tokens, keys and maps, (rows, dim) for what is pooled, (clips, dim) for
 * the query. Keys are tanh of `projected` + `bias`. Every row is independent, so that the number of
 * threads changes no bit of the result.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* exp(x) - 1 for |x| < 80: a power of two times a Taylor series. Not expm1f, as compilers
 * vectorise a loop only without calls. NaN stays NaN. */
static inline float exp_less_1(float x)
{
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693145752f - n * 1.42860677e-6f;
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 1.0f / 2;
    series = series * r * r + r;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * series + (power - 1);
}

static inline float tanh_of(float x)
{
    x = x > 10 ? 10 : x < -10 ? -10 : x;
    float e = exp_less_1(2 * x);
    return e / (e + 2);
}

/* Pool the cells of every frame. Writes keys in place of `projected`, and scores, values, the sums
 * of exp and, if there is a reference map, the keys it pools. */
void attention_forward(
    float *restrict projected, const float *restrict bias, const float *restrict tokens,
    const float *restrict query, const float *restrict reference, float *restrict scores,
    float *restrict values, float *restrict sums, float *restrict referred, ptrdiff_t clips,
    ptrdiff_t frames, ptrdiff_t cells, ptrdiff_t dim, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (ptrdiff_t row = 0; row < clips * frames; row++) {
        const float *restrict q = query + row / frames * dim;
        float *restrict u = scores + row * dim, *restrict v = values + row * dim;
        float *restrict z = sums + row * dim, *restrict r = referred + row * dim;
        memset(u, 0, dim * sizeof *u);
        memset(v, 0, dim * sizeof *v);
        memset(z, 0, dim * sizeof *z);
        if (reference)
            memset(r, 0, dim * sizeof *r);
        for (ptrdiff_t cell = row * cells; cell < (row + 1) * cells; cell++) {
            float *restrict key = projected + cell * dim;
            const float *restrict token = tokens + cell * dim;
#pragma omp simd
            for (ptrdiff_t i = 0; i < dim; i++) {
                float p = tanh_of(key[i] + bias[i]);
                float e = 1 + exp_less_1(q[i] * p);
                key[i] = p;
                z[i] += e;
                u[i] += e * p;
                v[i] += e * token[i];
            }
            if (reference)
#pragma omp simd
                for (ptrdiff_t i = 0; i < dim; i++)
                    r[i] += reference[cell * dim + i] * key[i];
        }
#pragma omp simd
        for (ptrdiff_t i = 0; i < dim; i++) {
            u[i] /= z[i];
            v[i] /= z[i];
        }
    }
}

/* Gradients of the above. Those of the query and the bias come a row each, to be added up. */
void attention_backward(
    const float *restrict keys, const float *restrict tokens, const float *restrict query,
    const float *restrict reference, const float *restrict scores, const float *restrict values,
    const float *restrict sums, const float *restrict d_scores, const float *restrict d_values,
    const float *restrict d_sums, const float *restrict d_referred, float *restrict d_projected,
    float *restrict d_bias, float *restrict d_query, ptrdiff_t clips, ptrdiff_t frames,
    ptrdiff_t cells, ptrdiff_t dim, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (ptrdiff_t row = 0; row < clips * frames; row++) {
        const float *restrict q = query + row / frames * dim;
        const float *restrict z = sums + row * dim, *restrict dz = d_sums + row * dim;
        const float *restrict u = scores + row * dim, *restrict du = d_scores + row * dim;
        const float *restrict v = values + row * dim, *restrict dv = d_values + row * dim;
        float *restrict db = d_bias + row * dim, *restrict dq = d_query + row * dim;
        memset(db, 0, dim * sizeof *db);
        memset(dq, 0, dim * sizeof *dq);
        for (ptrdiff_t cell = row * cells; cell < (row + 1) * cells; cell++) {
            const float *restrict key = keys + cell * dim;
            const float *restrict token = tokens + cell * dim;
            float *restrict d = d_projected + cell * dim;
#pragma omp simd
            for (ptrdiff_t i = 0; i < dim; i++) {
                float e = 1 + exp_less_1(q[i] * key[i]);
                float a = e / z[i];
                float ds = a * (du[i] * (key[i] - u[i]) + dv[i] * (token[i] - v[i])) + e * dz[i];
                dq[i] += ds * key[i];
                d[i] = ds * q[i] + a * du[i];
            }
            if (reference)
#pragma omp simd
                for (ptrdiff_t i = 0; i < dim; i++)
                    d[i] += reference[cell * dim + i] * d_referred[row * dim + i];
#pragma omp simd
            for (ptrdiff_t i = 0; i < dim; i++) {
                d[i] *= 1 - key[i] * key[i];
                db[i] += d[i];
            }
        }
    }
}
