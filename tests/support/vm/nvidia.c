/* Stand-in for the driver's kernel module: drives no hardware, and reports its version in /proc like the real module. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static int show(struct seq_file *file, void *unused)
{
	seq_puts(file, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  " DRIVER_VERSION
		       "  Release Build  (builder@host)\n");
	return 0;
}

static int __init start(void)
{
	struct proc_dir_entry *folder = proc_mkdir("driver/nvidia", NULL);

	return folder && proc_create_single("version", 0444, folder, show) ? 0 : -ENOMEM;
}

static void __exit stop(void)
{
	remove_proc_subtree("driver/nvidia", NULL);
}

module_init(start);
module_exit(stop);
MODULE_VERSION(DRIVER_VERSION);
MODULE_DESCRIPTION("stand-in for the NVIDIA driver");
MODULE_LICENSE("Dual MIT/GPL");
