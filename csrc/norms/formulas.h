/* The formulas of each normalizer, as table.c enters them. */
#ifndef FN_FORMULAS_H
#define FN_FORMULAS_H

#include "norms/common.h"

/* standard.c: all that have a mean and a sigma for each domain */
void fn_plain_coefficients(fn_coefs *cf, int64_t d0, int64_t d1);
void fn_plain_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1);
fn_careful fn_plain_careful(const fn_coefs *cf, int64_t plane, int backward);

/* renorm.c: batch and instance renorm */
/* whether y depends on the mean of domain d by more digits than the kernels give it */
int fn_renorm_mean_decides(const fn_coefs *cf, int64_t d);
void fn_renorm_statistics(fn_coefs *cf, int64_t d0, int64_t d1);

/* switchable.c */
int fn_switchable_valid(const fn_problem *p, const fn_params *q, int running);
int64_t fn_switchable_saved(const fn_plan *plan);
int64_t fn_switchable_own(const fn_plan *plan, int backward);
void fn_switchable_sample(fn_coefs *cf, int64_t n);
void fn_switchable_channels(fn_coefs *cf, int64_t c0, int64_t c1);
void fn_switchable_sample_grads(fn_coefs *cf, int64_t n);
void fn_switchable_channel_grads(fn_coefs *cf, int64_t c0, int64_t c1);
void fn_switchable_coefficients(fn_coefs *cf, int64_t p0, int64_t p1);
void fn_switchable_grad_coefficients(fn_coefs *cf, int64_t p0, int64_t p1);
fn_careful fn_switchable_careful(const fn_coefs *cf, int64_t plane, int backward);
void fn_switchable_logits(const fn_coefs *cf, const fn_grads *grads);

/* global_response.c */
int64_t fn_global_own(const fn_plan *plan, int backward);
void fn_global_sample(fn_coefs *cf, int64_t n);
void fn_global_sample_grads(fn_coefs *cf, int64_t n);
void fn_global_coefficients(fn_coefs *cf, int64_t p0, int64_t p1);
void fn_global_grad_coefficients(fn_coefs *cf, int64_t p0, int64_t p1);
fn_careful fn_global_careful(const fn_coefs *cf, int64_t plane, int backward);

#endif
