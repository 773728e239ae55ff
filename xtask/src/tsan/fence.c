/*
 * What ThreadSanitizer does not know of fences, as far as the last owner of an Arc needs it: each owner lets go with
 * fetch_sub(Release), and the last one puts fence(Acquire) behind it. The fence makes an acquire of the operation before it.
 *
 * Linked with --wrap for both names.
 */
#include <stdint.h>

extern void __tsan_acquire(void *address);
extern uint64_t __real___tsan_atomic64_fetch_sub(volatile uint64_t *at, uint64_t value, int order);
extern void __real___tsan_atomic_thread_fence(int order);
uint64_t __wrap___tsan_atomic64_fetch_sub(volatile uint64_t *at, uint64_t value, int order);
void __wrap___tsan_atomic_thread_fence(int order);

/* Of this thread's last fetch_sub. */
static _Thread_local void *subtracted_at;

uint64_t __wrap___tsan_atomic64_fetch_sub(volatile uint64_t *at, uint64_t value, int order)
{
	subtracted_at = (void *)at;
	return __real___tsan_atomic64_fetch_sub(at, value, order);
}

void __wrap___tsan_atomic_thread_fence(int order)
{
	__real___tsan_atomic_thread_fence(order);
	if (subtracted_at)
		__tsan_acquire(subtracted_at);
}
