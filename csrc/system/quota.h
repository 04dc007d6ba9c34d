/* How many processors a container lets its processes use. */
#ifndef FN_QUOTA_H
#define FN_QUOTA_H

/* The quota of this process's control groups, rounded up: 2 of 150 ms in each 100 ms.  0: there is
 * none.  root: "", or in a test a folder with proc/ and sys/. */
int fn_cpu_quota(const char *root);

#endif
